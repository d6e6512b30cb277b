// Draws diagrams with the site's own copy of Mermaid, which only pages that have one load. Without it they stay text.
(() => {
  const library = new URL("mermaid.min.js", document.currentScript.src);
  let loading;

  const load = () =>
    (loading ??= new Promise((resolve, reject) => {
      const script = Object.assign(document.createElement("script"), { src: library, onload: resolve, onerror: reject });
      document.head.append(script);
    }));

  const draw = async () => {
    const diagrams = [...document.querySelectorAll("pre.diagram")];
    if (diagrams.length === 0) return;
    await load();
    const dark = document.body.dataset.mdColorScheme === "slate";
    mermaid.initialize({ startOnLoad: false, theme: dark ? "dark" : "neutral" });
    for (const [place, diagram] of diagrams.entries()) {
      diagram.dataset.source ??= diagram.textContent;
      const { svg } = await mermaid.render(`diagram-${place}`, diagram.dataset.source);
      diagram.innerHTML = svg;
    }
  };

  const attempt = () => draw().catch((problem) => console.warn("The diagrams stay text.", problem));
  new MutationObserver(attempt).observe(document.body, { attributeFilter: ["data-md-color-scheme"] });
  if (typeof document$ === "undefined") attempt();
  else document$.subscribe(attempt); // also after navigation without a new page
})();
