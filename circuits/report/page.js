/* Starts a report page: theme button, copy buttons, the attention grid, and everything unfolded for print. */
(() => {
  const root = document.documentElement;
  const dark = () => matchMedia("(prefers-color-scheme: dark)").matches;

  const theme = document.getElementById("theme");
  const name = () => root.dataset.theme || (dark() ? "dark" : "light");
  const show = () => {
    theme.textContent = name() === "dark" ? "Light theme" : "Dark theme";
  };
  theme.hidden = false;
  theme.addEventListener("click", () => {
    root.dataset.theme = name() === "dark" ? "light" : "dark";
    show();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  show();
  for (const one of document.querySelectorAll(".from-end")) one.scrollLeft = one.scrollWidth;

  const select = (node) => {
    const range = document.createRange();
    range.selectNodeContents(node);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
  };
  for (const button of document.querySelectorAll("button[data-copy]")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const code = document.getElementById(button.dataset.copy);
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        select(code);
        button.textContent = document.execCommand("copy") ? "Copied" : "Selected";
      }
      setTimeout(() => {
        button.textContent = "Copy";
      }, 1600);
    });
  }

  let folded = [];
  let chosen = null;
  addEventListener("beforeprint", () => {
    chosen = root.dataset.theme || "";
    root.dataset.theme = "light";
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const one of folded) one.open = true;
  });
  addEventListener("afterprint", () => {
    for (const one of folded) one.open = false;
    if (chosen) root.dataset.theme = chosen;
    else delete root.dataset.theme;
  });

  const place = document.getElementById("attention-grid");
  const report = JSON.parse(document.getElementById("report-data").textContent);
  if (place && report.attention) {
    const { n_layers, n_heads, steps, examples } = report.attention;
    const roles = JSON.parse(document.getElementById("head-roles").textContent);
    const emerged = report.emergence ? report.emergence.emerged : null;
    window.reportGrid = AttnGrid.mount(place, { n_layers, n_heads, steps, examples, roles, emerged });
  }
})();
