// What AsyncAPI's own parser says of files: a line of JSON for each.
const { readFileSync } = require("node:fs");
const { Parser } = require("@asyncapi/parser");

(async () => {
  const parser = new Parser();
  for (const file of process.argv.slice(2)) {
    const { document, diagnostics } = await parser.parse(readFileSync(file, "utf8"));
    const errors = diagnostics.filter(({ severity }) => severity === 0);
    console.log(
      JSON.stringify({
        addresses: document ? document.channels().all().map((channel) => channel.address()) : null,
        messages: document ? document.allMessages().all().map((message) => message.name()) : null,
        errors: errors.map(({ message, path }) => `${path.join(".")}: ${message}`),
      }),
    );
  }
})();
