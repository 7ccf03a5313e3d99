/* CircuitFrames: the drawings of a circuit at several checkpoints, with play, scrub and picking of edges and nodes.

   CircuitFrames.mount(root, data, options) draws into `root` and returns {set, destroy}. data: {frames: [{step, svg,
   words}], index, picked, style, file}; the SVG text is made by circuits.report.circuit_svg, which escapes every name in
   it, and `style` and `file` are the look and the first part of the name of a picture that is saved.
   options.onPick(name) is called for a click or Enter on an edge or node, options.onStep(step) when the slider rests. */
const CircuitFrames = (() => {
  const SECOND = 900;
  const SHARP = 2; // pixels of a saved picture for each of the drawing
  const SMALLEST = 0.78; // share of its own width below which a drawing cannot be read
  const el = (tag, name, text, attributes) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text) made.textContent = text;
    for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
    return made;
  };

  class Frames {
    constructor(root, data, options) {
      Object.assign(this, { data, options, index: data.index, picked: data.picked, timer: 0 });
      this.element = el("div", "cf", null, { role: "group", "aria-label": "Circuit through training" });
      if (data.frames.length > 1) this.element.append(this.time());
      this.stage = el("div", "cf-stage");
      this.save = el("button", "cf-save", "Drawing (PNG)", { type: "button" });
      this.save.addEventListener("click", () => this.picture());
      this.element.append(this.stage, this.save);
      root.append(this.element);
      this.sizes = new ResizeObserver(() => this.fit());
      this.sizes.observe(this.stage);
      this.stage.addEventListener("click", (event) => this.pick(event.target));
      this.stage.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        this.pick(event.target);
      });
      this.draw();
    }

    time() {
      const root = el("div", "cf-time");
      this.play = el("button", "cf-play", "Play", { type: "button" });
      const max = String(this.data.frames.length - 1);
      this.slider = el("input", "cf-slider", null, { type: "range", min: "0", max, "aria-label": "Checkpoint" });
      this.said = el("output", "cf-step");
      this.play.addEventListener("click", () => this.toggle());
      this.slider.addEventListener("input", () => {
        this.stop();
        this.show(Number(this.slider.value));
      });
      this.slider.addEventListener("change", () => this.rest());
      root.append(this.play, this.slider, this.said);
      return root;
    }

    toggle() {
      if (this.timer) {
        this.stop();
        this.rest();
        return;
      }
      this.play.textContent = "Pause";
      if (this.index === this.data.frames.length - 1) this.show(0);
      this.timer = setInterval(() => {
        this.show(Math.min(this.index + 1, this.data.frames.length - 1));
        if (this.index === this.data.frames.length - 1) {
          this.stop();
          this.rest();
        }
      }, SECOND);
    }

    stop() {
      clearInterval(this.timer);
      this.timer = 0;
      if (this.play) this.play.textContent = "Play";
    }

    rest() {
      if (this.options.onStep) this.options.onStep(this.data.frames[this.index].step);
    }

    show(index) {
      if (index === this.index) return;
      this.index = index;
      this.draw();
    }

    draw() {
      const frame = this.data.frames[this.index];
      this.stage.innerHTML = frame.svg;
      this.fit();
      const reached = new Set();
      for (const one of this.stage.querySelectorAll("[data-edge], [data-node]")) {
        const title = one.querySelector("title");
        one.setAttribute("tabindex", reached.has(this.nameOf(one)) ? "-1" : "0"); // one of the places of an edge
        reached.add(this.nameOf(one));
        one.setAttribute("role", "button");
        one.setAttribute("aria-label", title ? title.textContent : this.nameOf(one));
      }
      this.mark();
      if (!this.slider) return;
      this.slider.value = String(this.index);
      this.said.textContent = `step ${frame.step.toLocaleString("en")}: ${frame.words}`;
      this.slider.setAttribute("aria-valuetext", this.said.textContent);
    }

    /* A drawing shrinks a little to the room there is; where that is not enough, it keeps its size and scrolls. */
    fit() {
      const drawing = this.stage.querySelector("svg");
      const width = Number(drawing.getAttribute("width"));
      drawing.style.minWidth = this.stage.clientWidth < SMALLEST * width ? `${width}px` : "0";
    }

    /* Saves what is shown as a PNG of twice its size, made by the browser itself. */
    picture() {
      const made = (tag, attributes, text) => {
        const one = document.createElementNS("http://www.w3.org/2000/svg", tag);
        for (const [key, value] of Object.entries(attributes)) one.setAttribute(key, value);
        one.textContent = text;
        return one;
      };
      const drawing = this.stage.querySelector("svg").cloneNode(true);
      const { x, y, width, height } = drawing.viewBox.baseVal;
      drawing.removeAttribute("style");
      drawing.setAttribute("height", height);
      drawing.prepend(made("style", {}, this.data.style), made("rect", { x, y, width, height, class: "ground" }, ""));
      const text = new XMLSerializer().serializeToString(drawing).replace(/[^\t\n\r\x20-\ufffd]/g, "\ufffd");
      const image = new Image();
      image.addEventListener("load", () => {
        const canvas = el("canvas", "", null, { width: SHARP * width, height: SHARP * height });
        canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
        const name = `${this.data.file}-step-${this.data.frames[this.index].step}.circuit.png`;
        el("a", "", null, { href: canvas.toDataURL("image/png"), download: name }).click();
        URL.revokeObjectURL(image.src);
      });
      image.src = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
    }

    nameOf(one) {
      return one.dataset.whole || one.dataset.edge || one.dataset.node;
    }

    mark() {
      for (const one of this.stage.querySelectorAll("[data-edge], [data-node]")) {
        one.classList.toggle("picked", this.nameOf(one) === this.picked);
      }
    }

    pick(target) {
      const one = target.closest("[data-edge], [data-node]");
      if (!one) return;
      this.picked = this.nameOf(one);
      this.mark();
      if (this.options.onPick) this.options.onPick(this.picked);
    }

    set({ index, picked }) {
      this.picked = picked;
      if (!this.timer && index !== this.index) this.show(index);
      else this.mark();
    }

    destroy() {
      this.stop();
      this.sizes.disconnect();
      this.element.remove();
    }
  }

  return { mount: (root, data, options) => new Frames(root, data, options) };
})();
