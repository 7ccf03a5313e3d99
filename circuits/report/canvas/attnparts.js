/* AttnParts: builds the elements of AttnGrid, with their labels, and returns those that change later. */
const AttnParts = (() => {
  const { el } = AttnDraw;
  const READOUT = [["query", "Query"], ["key", "Key"], ["p", "Attention"], ["target", "Target of"]];
  const HINT = "Arrow keys move the cell, Home and End go to the first and last key, [ and ] change the checkpoint.";
  const MODES = [["matrix", "Matrix"], ["lines", "Lines"]];
  let count = 0;

  const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
  const headName = (layer, head) => `L${layer}.H${head}`;

  function bar(parts, data, examples) {
    const root = el("div", "ag-bar");
    parts.play = el("button", "ag-play", "Play", { type: "button", "aria-label": "Play through the checkpoints" });
    const max = String(data.steps.length - 1);
    parts.slider = el("input", "ag-slider", null, { type: "range", min: "0", max, "aria-label": "Checkpoint" });
    parts.stepText = el("output", "ag-step");
    const track = el("div", "ag-track");
    track.append(parts.slider, ...emergence(data));
    const time = el("div", "ag-time");
    time.append(parts.play, track, parts.stepText);
    time.hidden = data.steps.length < 2;
    parts.select = el("select", "ag-select", null, { "aria-label": "Sequence" });
    examples.forEach((e, i) => parts.select.append(el("option", "", e.label, { value: String(i) })));
    parts.select.hidden = examples.length < 2;
    parts.check = el("input", "", null, { type: "checkbox" });
    parts.check.checked = true;
    const targets = el("label", "ag-check");
    targets.append(parts.check, document.createTextNode("Outline targets"));
    targets.hidden = !examples.some((e) => e.targets.length);
    root.append(time, parts.select, modes(parts), targets);
    return root;
  }

  /* The mark of the step of emergence above the slider's track. */
  function emergence(data) {
    const at = data.steps.indexOf(data.emerged);
    if (at < 0 || data.steps.length < 2) return [];
    const mark = el("span", "ag-emerged", null, { "aria-hidden": "true", title: `emerged by step ${data.emerged}` });
    mark.style.setProperty("--at", String(at / (data.steps.length - 1)));
    return [mark];
  }

  function modes(parts) {
    const root = el("div", "ag-modes", null, { role: "group", "aria-label": "Drawing" });
    parts.modes = MODES.map(([id, name]) => {
      const button = el("button", "ag-mode", name, { type: "button", "data-mode": id });
      root.append(button);
      return button;
    });
    return root;
  }

  function heads(parts, data) {
    const root = el("div", "ag-heads", null, { role: "group", "aria-label": "Heads" });
    parts.thumbs = [];
    for (let layer = 0; layer < data.n_layers; layer += 1) {
      const row = el("div", "ag-row");
      for (let head = 0; head < data.n_heads; head += 1) {
        const role = data.roles[headName(layer, head)] || "";
        const button = el("button", "ag-head", null, { type: "button" });
        button.setAttribute("aria-label", `Layer ${layer}, head ${head}${role ? `, ${role}` : ""}`);
        const canvas = el("canvas", "", null, { "aria-hidden": "true" });
        const text = el("span", "ag-name", headName(layer, head));
        const score = el("span", "ag-score");
        const found = el("em", "", role);
        text.append(score, found);
        button.append(canvas, text);
        row.append(button);
        parts.thumbs.push({ button, canvas, score, found, layer, head });
      }
      root.append(row);
    }
    return root;
  }

  function legend(parts) {
    const root = el("div", "ag-legend");
    parts.ramp = el("canvas", "ag-ramp", null, { width: "256", height: "1", "aria-hidden": "true" });
    const ticks = el("div", "ag-ticks", null, { "aria-hidden": "true" });
    for (const p of [0, 0.05, 0.2, 0.5, 1]) {
      const tick = el("span", "", String(p));
      tick.style.left = `${100 * Math.sqrt(p)}%`;
      ticks.append(tick);
    }
    root.append(el("span", "", "Attention, square-root scale"), parts.ramp, ticks);
    return root;
  }

  function zoom(parts, data) {
    const root = el("div", "ag-zoom");
    count += 1;
    const id = `attn-keys-${count}`;
    parts.title = el("div", "ag-title");
    parts.plot = el("canvas", "ag-plot", null, { tabindex: "0", role: "application", "aria-describedby": id });
    parts.hint = el("div", "ag-hint", HINT, { id });
    root.append(parts.title, parts.plot, legend(parts));
    if (data.note) root.append(el("div", "ag-hint", data.note));
    root.append(parts.hint);
    return root;
  }

  function side(parts, examples, exact) {
    const root = el("div", "ag-side");
    const list = el("dl", "ag-read");
    parts.read = {};
    const lines = READOUT.filter(([key]) => key !== "target" || examples.some((one) => one.targets.length));
    for (const [key, name] of exact ? [...lines, ["exact", "Exact"]] : lines) {
      parts.read[key] = el("dd", `ag-${key}-now`, "");
      list.append(el("dt", "", name), parts.read[key]);
    }
    parts.spark = el("canvas", "ag-spark", null, { role: "img" });
    parts.far = el("canvas", "ag-spark", null, { role: "img" });
    parts.farText = el("div", "ag-label", "");
    parts.strip = el("div", "ag-strip", null, { "aria-hidden": "true" });
    const over = el("div");
    over.append(el("div", "ag-label", "This cell through training"), parts.spark);
    const far = el("div");
    far.append(el("div", "ag-label", "How far back this head reads"), parts.far, parts.farText);
    const reads = el("div");
    reads.append(el("div", "ag-label", "What this query reads"), parts.strip);
    root.append(list, over, far, reads);
    return root;
  }

  /* Every element of the component; the changing ones as properties of the result. exact: the host has exact values. */
  function build(root, data, examples, exact) {
    const parts = {};
    const label = `Attention patterns: ${plural(data.n_layers, "layer")}, ${plural(data.n_heads, "head")} per layer`;
    const many = data.n_heads > 4 ? "ag ag-many" : data.n_heads > 2 ? "ag ag-some" : "ag";
    parts.element = el("div", many, null, { role: "group", "aria-label": label });
    parts.said = el("div", "ag-hidden", null, { "aria-live": "polite" });
    const body = el("div", "ag-body");
    body.append(heads(parts, data), zoom(parts, data), side(parts, examples, exact));
    parts.element.append(bar(parts, data, examples), body, parts.said);
    root.append(parts.element);
    return parts;
  }

  return { build, headName, HINT };
})();
