/* HeatGrid: signed effects on canvas, one panel per table, with hover, keyboard, picking and a slider over checkpoints.

   HeatGrid.mount(root, data, options) draws into `root` and returns {element, set, state, refresh, destroy}.
   data: see circuits/report/canvas/heat.py (heat_data). options.onPick(cell) is called on a click or Enter on a cell,
   options.onStep(step) when the slider is released. Needs attndata.js and attndraw.js before it. */
const HeatGrid = (() => {
  const { el, clamp, short } = AttnDraw;
  const { decode } = AttnData;
  const [EFFECT, NEUTRAL, SKIPPED, NONE] = [0, 1, 2, 3];
  const KIND_WORDS = ["", "95 % interval covers 0", "", "no such cell"];
  const [ROW, FAINTEST, WIDEST, NARROWEST, LETTER] = [20, 0.1, 40, 5, 6.7];
  const HINT = "Arrow keys move the cell, Enter picks it.";

  const numbers = (text) => (text ? new Float32Array(decode(text).buffer) : null);
  const size = (v) => (v >= 0.0005 || v === 0 ? v.toFixed(3) : v.toExponential(1));
  const decimal = (v) => (v < 0 ? "−" : "+") + size(Math.abs(v));

  function unpacked(panel) {
    const frames = panel.frames.map((one) => ({
      values: numbers(one.values), low: numbers(one.low), high: numbers(one.high), kinds: decode(one.kinds),
    }));
    return { ...panel, frames };
  }

  class Heat {
    constructor(root, data, options) {
      this.options = options;
      this.data = data;
      this.panels = data.panels.map(unpacked);
      this.now = { panel: 0, row: 0, column: 0, frame: data.frame, ...(data.selected || {}) };
      this.picked = data.selected ? { ...data.selected } : null;
      this.build(root);
      this.listen();
      this.refresh();
    }

    /* ---- elements ---- */

    build(root) {
      this.element = el("div", "hg", null, { role: "group", "aria-label": this.data.metric });
      this.element.append(this.legend());
      if (this.data.steps && this.data.steps.length > 1) this.element.append(this.time());
      this.plots = this.panels.map((panel, index) => this.panelParts(panel, index));
      this.tip = el("div", "hg-tip", null, { "aria-hidden": "true" });
      this.tip.hidden = true;
      this.said = el("div", "ag-hidden", null, { "aria-live": "polite" });
      this.element.append(this.tip, this.said, el("div", "hg-hint", HINT));
      root.append(this.element);
    }

    legend() {
      const { metric, raises, lowers, hatched, scale, note } = this.data;
      const root = el("div", "hg-legend");
      this.ramp = el("canvas", "hg-ramp", null, { width: "201", height: "1", "aria-hidden": "true" });
      const ends = el("div", "hg-ends");
      const words = [`${decimal(-scale)} ${lowers}`, "0", `${decimal(scale)} ${raises}`];
      ends.append(...words.map((text) => el("span", "", text)));
      const bar = el("div", "hg-bar");
      bar.append(this.ramp, ends);
      const keys = el("div", "hg-keys");
      for (const [name, meaning] of [["flat", "95 % interval covers 0"], ["hatch", hatched]]) {
        const key = el("span", "hg-key", meaning);
        key.prepend(el("i", `hg-swatch hg-${name}`));
        keys.append(key);
      }
      const title = el("div", "hg-words");
      title.append(el("strong", "", metric));
      if (note) title.append(el("span", "", note));
      root.append(title, bar, keys);
      return root;
    }

    time() {
      const root = el("div", "hg-time");
      const max = String(this.data.steps.length - 1);
      this.slider = el("input", "ag-slider", null, { type: "range", min: "0", max, "aria-label": "Checkpoint" });
      this.stepText = el("output", "hg-step");
      root.append(this.slider, this.stepText);
      return root;
    }

    panelParts(panel, index) {
      const root = el("figure", "hg-panel");
      const label = `${panel.title}: rows are ${panel.row_name}, columns are ${panel.column_name}`;
      const canvas = el("canvas", "hg-plot", null, { tabindex: "0", role: "application", "aria-label": label });
      const scroll = el("div", "hg-scroll");
      scroll.append(canvas);
      root.append(el("figcaption", "hg-title", panel.title), scroll);
      this.element.append(root);
      return { canvas, panel, index, scroll };
    }

    /* ---- events ---- */

    listen() {
      for (const plot of this.plots) {
        plot.canvas.addEventListener("pointermove", (event) => this.look(plot, this.cellAt(plot, event), event));
        plot.canvas.addEventListener("pointerleave", () => this.look(plot, null));
        plot.canvas.addEventListener("click", (event) => this.pick(this.cellAt(plot, event)));
        plot.canvas.addEventListener("keydown", (event) => this.key(plot, event));
        plot.canvas.addEventListener("focus", () => this.enter(plot));
        plot.canvas.addEventListener("blur", () => this.draw());
      }
      if (this.slider) {
        this.slider.addEventListener("input", () => this.frame(Number(this.slider.value)));
        this.slider.addEventListener("change", () => {
          if (this.options.onStep) this.options.onStep(this.data.steps[this.now.frame]);
        });
      }
      this.again = () => this.refresh();
      this.unwatch = AttnDraw.watchTheme(this.again);
      this.sizes = new ResizeObserver(() => this.draw());
      this.sizes.observe(this.element);
    }

    enter(plot) {
      if (this.now.panel !== plot.index) Object.assign(this.now, { panel: plot.index, row: 0, column: 0 });
      this.draw();
      this.say();
    }

    key(plot, event) {
      const { row, column } = this.now;
      const last = { row: plot.panel.rows.length - 1, column: plot.panel.columns.length - 1 };
      const moves = {
        ArrowLeft: { column: column - 1 }, ArrowRight: { column: column + 1 }, ArrowUp: { row: row - 1 },
        ArrowDown: { row: row + 1 }, Home: { column: 0 }, End: { column: last.column },
      };
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        this.pick({ panel: plot.index, row, column });
        return;
      }
      const move = moves[event.key];
      if (!move) return;
      event.preventDefault();
      const next = { row, column, ...move };
      this.now.row = clamp(next.row, 0, last.row);
      this.now.column = clamp(next.column, 0, last.column);
      this.draw();
      this.say();
    }

    cellAt(plot, event) {
      const box = plot.canvas.getBoundingClientRect();
      const { left, top, cell } = plot.size;
      const column = Math.floor((event.clientX - box.left - left) / cell);
      const row = Math.floor((event.clientY - box.top - top) / ROW);
      const { rows, columns } = plot.panel;
      const inside = row >= 0 && column >= 0 && row < rows.length && column < columns.length;
      return inside && this.kind(plot.panel, row, column) !== NONE ? { panel: plot.index, row, column } : null;
    }

    look(plot, cell, event) {
      this.tip.hidden = !cell;
      if (!cell) return;
      this.tip.replaceChildren(...this.words(cell).map((line, i) => el(i ? "span" : "strong", "", line)));
      const box = this.element.getBoundingClientRect();
      const x = event.clientX - box.left;
      this.tip.style.left = `${clamp(x + 14, 0, Math.max(0, box.width - this.tip.offsetWidth))}px`;
      this.tip.style.top = `${event.clientY - box.top + 16}px`;
    }

    pick(cell) {
      if (!cell || this.kind(this.panels[cell.panel], cell.row, cell.column) === NONE) return;
      this.picked = { ...cell };
      Object.assign(this.now, cell);
      this.draw();
      this.say();
      if (this.options.onPick) this.options.onPick(this.state());
    }

    frame(index) {
      this.now.frame = index;
      this.tip.hidden = true;
      this.draw();
    }

    say() {
      this.said.textContent = this.words(this.now).join(", ");
    }

    /* ---- data ---- */

    shown(panel) {
      return panel.frames[Math.min(this.now.frame, panel.frames.length - 1)];
    }

    kind(panel, row, column) {
      return this.shown(panel).kinds[row * panel.columns.length + column];
    }

    /* The cell in words: where it is, its value with the interval, and what kind of cell it is. */
    words({ panel, row, column }) {
      const one = this.panels[panel];
      const at = row * one.columns.length + column;
      const { values, low, high, kinds } = this.shown(one);
      const where = `${one.title}, ${one.rows[row]}, ${one.column_name} ${one.columns[column]}`;
      const lines = [where];
      if (kinds[at] === EFFECT || kinds[at] === NEUTRAL) {
        const bounds = low && high ? ` [${decimal(low[at])}, ${decimal(high[at])}]` : "";
        lines.push(`${decimal(values[at])}${bounds}`);
      }
      const kind = kinds[at] === SKIPPED ? this.data.hatched : KIND_WORDS[kinds[at]];
      if (kind) lines.push(kind);
      const reason = one.reasons && one.reasons[`${row},${column}`];
      if (reason) lines.push(reason);
      return lines;
    }

    /* ---- drawing ---- */

    refresh() {
      const names = ["up", "down", "flat", "hatch", "text", "dim", "accent"];
      const rgb = (name) => `rgb(${AttnDraw.colourOf(this.element, `--hg-${name}`).join(" ")})`;
      this.ink = Object.fromEntries(names.map((name) => [name, rgb(name)]));
      this.font = getComputedStyle(this.element).fontFamily;
      const pen = this.ramp.getContext("2d");
      pen.clearRect(0, 0, 201, 1);
      for (let i = 0; i < 201; i += 1) this.paint(pen, (i - 100) / 100, i, 0, 1, 1);
      this.draw();
    }

    paint(pen, share, x, y, wide, high) {
      pen.globalAlpha = Math.max(FAINTEST, Math.min(1, Math.abs(share)));
      pen.fillStyle = share < 0 ? this.ink.down : this.ink.up;
      pen.fillRect(x, y, wide, high);
      pen.globalAlpha = 1;
    }

    draw() {
      if (this.slider) {
        const { steps } = this.data;
        const step = steps[this.now.frame].toLocaleString("en");
        const text = `step ${step}, checkpoint ${this.now.frame + 1} of ${steps.length}`;
        this.slider.value = String(this.now.frame);
        this.slider.setAttribute("aria-valuetext", text);
        this.stepText.textContent = text;
      }
      for (const plot of this.plots) this.drawPanel(plot);
    }

    layout(plot) {
      const { rows, columns } = plot.panel;
      const longest = (names) => LETTER * Math.min(12, Math.max(...names.map((name) => name.length), 1));
      const left = Math.ceil(longest(rows)) + 14;
      const room = (plot.scroll.clientWidth || 640) - left - 6;
      const cell = clamp(Math.floor(room / columns.length), NARROWEST, WIDEST);
      const turned = longest(columns) > cell - 4;
      return { left, top: 2, cell, turned, bottom: turned ? Math.ceil(longest(columns)) + 12 : 20 };
    }

    drawPanel(plot) {
      const { canvas, panel } = plot;
      const size = this.layout(plot);
      plot.size = size;
      const ratio = window.devicePixelRatio || 1;
      const wide = size.left + size.cell * panel.columns.length + 4;
      const high = size.top + ROW * panel.rows.length + size.bottom;
      canvas.style.width = `${wide}px`;
      canvas.style.height = `${high}px`;
      canvas.width = Math.round(wide * ratio);
      canvas.height = Math.round(high * ratio);
      const pen = canvas.getContext("2d");
      pen.scale(ratio, ratio);
      const frame = this.shown(panel);
      const gap = size.cell > 8 ? 1 : 0;
      frame.kinds.forEach((kind, at) => {
        const x = size.left + (at % panel.columns.length) * size.cell;
        const y = size.top + Math.floor(at / panel.columns.length) * ROW;
        this.drawCell(pen, kind, frame.values[at] / this.data.scale, [x, y, size.cell - gap, ROW - 1]);
      });
      this.drawLabels(pen, panel, size);
      this.drawMarks(pen, plot);
    }

    drawCell(pen, kind, share, [x, y, wide, high]) {
      if (kind === NONE) return;
      if (kind === EFFECT) {
        this.paint(pen, share, x, y, wide, high);
        pen.globalAlpha = 0.35; // a frame, so that a faint effect is not taken for a neutral cell
        pen.lineWidth = 1;
        pen.strokeStyle = share < 0 ? this.ink.down : this.ink.up;
        pen.strokeRect(x + 0.5, y + 0.5, wide - 1, high - 1);
        pen.globalAlpha = 1;
        return;
      }
      pen.fillStyle = this.ink.flat;
      if (kind === NEUTRAL) pen.fillRect(x, y, wide, high);
      if (kind !== SKIPPED) return;
      pen.save();
      pen.beginPath();
      pen.rect(x, y, wide, high);
      pen.clip();
      pen.strokeStyle = this.ink.hatch;
      pen.lineWidth = 1.5;
      pen.beginPath();
      // Lines of x + y = a multiple of 6, so that the hatching of neighbours joins.
      for (let sum = Math.ceil((x + y) / 6) * 6; sum < x + y + wide + high; sum += 6) {
        pen.moveTo(sum - y, y);
        pen.lineTo(sum - y - high, y + high);
      }
      pen.stroke();
      pen.restore();
    }

    drawLabels(pen, panel, size) {
      pen.font = `12px ${this.font}`;
      pen.fillStyle = this.ink.dim;
      pen.textBaseline = "middle";
      pen.textAlign = "right";
      panel.rows.forEach((name, i) => pen.fillText(short(name, 12), size.left - 7, size.top + (i + 0.5) * ROW));
      const every = Math.max(1, Math.ceil((size.turned ? 13 : 1) / size.cell));
      const y = size.top + ROW * panel.rows.length + 6;
      panel.columns.forEach((name, i) => {
        if ((panel.columns.length - 1 - i) % every) return;
        pen.save();
        pen.translate(size.left + (i + 0.5) * size.cell, y);
        if (size.turned) pen.rotate(-Math.PI / 2);
        pen.textAlign = size.turned ? "right" : "center";
        pen.fillText(short(name, 12), 0, size.turned ? 0 : 7);
        pen.restore();
      });
    }

    drawMarks(pen, plot) {
      const box = ({ row, column }, width, ink) => {
        pen.lineWidth = width;
        pen.strokeStyle = ink;
        const [x, y] = [plot.size.left + column * plot.size.cell, plot.size.top + row * ROW];
        pen.strokeRect(x, y, plot.size.cell - 1, ROW - 1);
      };
      if (this.picked && this.picked.panel === plot.index) box(this.picked, 2.5, this.ink.accent);
      const focused = plot.canvas.matches(":focus-visible");
      if (focused && this.now.panel === plot.index) box(this.now, 1.5, this.ink.text);
    }

    /* ---- for the host ---- */

    state() {
      const { panel, row, column, frame } = this.now;
      const one = this.panels[panel];
      const at = row * one.columns.length + column;
      const { values, kinds } = this.shown(one);
      const step = this.data.steps ? this.data.steps[frame] : null;
      return { panel, row, column, step, kind: kinds[at], value: kinds[at] <= NEUTRAL ? values[at] : null };
    }

    set({ selected, frame }) {
      if (selected !== undefined) this.picked = selected ? { ...selected } : null;
      if (Number.isInteger(frame)) this.now.frame = clamp(frame, 0, (this.data.steps || [0]).length - 1);
      this.draw();
    }

    destroy() {
      this.unwatch();
      this.sizes.disconnect();
      this.element.remove();
    }
  }

  /* Draw into `root`; the handle lets a host move the view and take it down. */
  function mount(root, data, options = {}) {
    const heat = new Heat(root, data, options);
    return {
      element: heat.element,
      set: (change) => heat.set(change),
      state: () => heat.state(),
      refresh: () => heat.refresh(),
      destroy: () => heat.destroy(),
    };
  }

  return { mount };
})();
