// Of a terminal, copies the commands: neither their prompts nor what they say.
document.addEventListener(
  "click",
  ({ target }) => {
    const button = target.closest?.(".md-code__button");
    const shown = button?.closest(".highlight")?.querySelector("code");
    if (!shown?.querySelector(".gp")) return;
    const lines = shown.textContent.split("\n").filter((line) => line.startsWith("$ "));
    button.dataset.clipboardText = lines.map((line) => line.slice(2)).join("\n");
  },
  true, // before the site's own listener takes the text
);
