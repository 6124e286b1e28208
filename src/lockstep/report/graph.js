// The graph: move, zoom, and show what a chosen node reads and makes.
"use strict";
{
  const view = document.getElementById("graph-view");
  const graph = JSON.parse(document.getElementById("page-data").textContent).graph;
  if (view) new (class {
    constructor() {
      this.canvas = document.getElementById("canvas");
      this.svg = this.canvas.querySelector("svg");
      this.detail = document.getElementById("detail");
      this.width = Number(this.svg.dataset.width);
      this.height = Number(this.svg.dataset.height);
      this.nodes = new Map(graph.nodes.map((node) => [node.id, node]));
      this.order = graph.nodes.map((node) => node.id);
      this.shapes = new Map([...this.svg.querySelectorAll(".node")].map((e) => [e.dataset.id, e]));
      this.edges = [...this.svg.querySelectorAll(".edge")];
      this.maker = new Map(graph.nodes.flatMap((n) => n.outputs.map((value) => [value, n.id])));
      this.readers = new Map();
      for (const node of graph.nodes) {
        for (const value of node.inputs) this.readers.set(value, [...(this.readers.get(value) ?? []), node.id]);
        const verdicts = node.compared.map((row) => row[1]);
        for (const bad of ["victim", "culprit"]) {
          this.shapes.get(node.id).classList.toggle(bad, verdicts.includes(bad));
        }
      }
      document.getElementById("zoom-in").addEventListener("click", () => this.zoom(1 / 1.4));
      document.getElementById("zoom-out").addEventListener("click", () => this.zoom(1.4));
      document.getElementById("zoom-fit").addEventListener("click", () => this.fit());
      document.getElementById("far").addEventListener("change", (event) => view.classList.toggle("show-far", event.target.checked));
      this.canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
      this.pointers = new Map();
      this.canvas.addEventListener("pointerdown", (event) => this.down(event));
      this.canvas.addEventListener("pointermove", (event) => this.move(event));
      for (const name of ["pointerup", "pointercancel"]) {
        this.canvas.addEventListener(name, (event) => this.up(event));
      }
      this.svg.addEventListener("keydown", (event) => this.key(event));
      new ResizeObserver(() => this.resize()).observe(this.canvas);
      this.start();
    }

    // At first the top of the graph at a size at which names can be read.
    start() {
      if (!this.canvas.clientWidth) return; // not shown yet
      const scale = Math.min(1.6, Math.max(1, this.width / this.canvas.clientWidth));
      this.box = { x: 0, y: -8, w: this.canvas.clientWidth * scale, h: this.canvas.clientHeight * scale };
      const spare = this.box.w - this.width;
      this.box.x = spare > 0 ? -spare / 2 : 0;
      this.apply();
    }

    fit() {
      const scale = 1.04 * Math.max(this.width / this.canvas.clientWidth, this.height / this.canvas.clientHeight);
      const w = this.canvas.clientWidth * scale, h = this.canvas.clientHeight * scale;
      this.box = { x: (this.width - w) / 2, y: (this.height - h) / 2, w, h };
      this.apply();
    }

    resize() {
      if (!this.canvas.clientWidth) return;
      if (!this.box) { this.start(); return; }
      const scale = this.box.w / this.canvas.clientWidth;
      this.box.h = this.canvas.clientHeight * scale;
      this.apply();
    }

    apply() {
      const { x, y, w, h } = this.box;
      this.svg.setAttribute("viewBox", `${x} ${y} ${w} ${h}`);
    }

    zoom(factor, px = 0.5, py = 0.5) {
      const { x, y, w, h } = this.box;
      const to = Math.min(20 * this.width, Math.max(120, w * factor)) / w;
      this.box = { x: x + w * px * (1 - to), y: y + h * py * (1 - to), w: w * to, h: h * to };
      this.apply();
    }

    wheel(event) {
      if (!event.ctrlKey && !event.metaKey) return; // the page scrolls
      event.preventDefault();
      const box = this.canvas.getBoundingClientRect();
      this.zoom(Math.exp(event.deltaY / 300), (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
    }

    down(event) {
      this.pointers.set(event.pointerId, event);
      this.moved = 0;
      this.pressed = event.target.closest(".node");
    }

    move(event) {
      const before = this.pointers.get(event.pointerId);
      if (!before) return;
      const [dx, dy] = [event.clientX - before.clientX, event.clientY - before.clientY];
      this.moved += Math.hypot(dx, dy);
      if (this.moved > 4 && !this.canvas.hasPointerCapture(event.pointerId)) {
        this.canvas.setPointerCapture(event.pointerId);
        this.canvas.classList.add("dragging");
      }
      const others = [...this.pointers.values()].filter((p) => p.pointerId !== event.pointerId);
      const scale = this.box.w / this.canvas.clientWidth;
      if (others.length) {
        const apart = (p) => Math.hypot(p.clientX - others[0].clientX, p.clientY - others[0].clientY) || 1;
        this.zoom(apart(before) / apart(event));
      } else if (this.moved > 4) {
        this.box.x -= dx * scale;
        this.box.y -= dy * scale;
        this.apply();
      }
      this.pointers.set(event.pointerId, event);
    }

    up(event) {
      this.pointers.delete(event.pointerId);
      this.canvas.classList.remove("dragging");
      if (event.type === "pointerup" && this.moved <= 4 && this.pressed) this.choose(this.pressed.dataset.id);
    }

    key(event) {
      const shape = event.target.closest(".node");
      if (!shape) return;
      const at = this.order.indexOf(shape.dataset.id), last = this.order.length - 1;
      const to = { ArrowDown: at + 1, ArrowRight: at + 1, ArrowUp: at - 1, ArrowLeft: at - 1, Home: 0, End: last, Enter: at, " ": at }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      this.choose(this.order[Math.min(last, Math.max(0, to))], true);
    }

    choose(id, show = false) {
      const shape = this.shapes.get(id), node = this.nodes.get(id);
      for (const other of this.shapes.values()) {
        other.classList.remove("on", "near");
        other.setAttribute("tabindex", other === shape ? "0" : "-1");
      }
      shape.classList.add("on");
      for (const edge of this.edges) {
        const on = edge.dataset.from === id || edge.dataset.to === id;
        edge.classList.toggle("on", on);
        if (on) this.shapes.get(edge.dataset.from === id ? edge.dataset.to : edge.dataset.from).classList.add("near");
      }
      if (show) this.reveal(shape);
      shape.focus({ preventScroll: true });
      this.describe(node);
    }

    reveal(shape) {
      const rect = shape.querySelector("rect");
      const [x, y, w, h] = ["x", "y", "width", "height"].map((name) => Number(rect.getAttribute(name)));
      const { box } = this;
      if (x < box.x || x + w > box.x + box.w) box.x = x + w / 2 - box.w / 2;
      if (y < box.y || y + h > box.y + box.h) box.y = y + h / 2 - box.h / 2;
      this.apply();
    }

    describe(node) {
      const heading = make("h3", node.id), list = make("dl");
      const row = (name, ...content) => {
        const value = make("dd");
        value.append(...content);
        list.append(make("dt", name), value);
      };
      row("op", `${node.op}, ${node.section}`);
      for (const value of node.inputs) row("reads", this.type(value), " ", this.link(value, this.maker.get(value)));
      for (const value of node.outputs) {
        row("makes", this.type(value), " ", value);
        const readers = this.readers.get(value) ?? [];
        if (readers.length) row("read by", ...readers.map((id) => this.link(id, id)));
      }
      if (node.covers.length) row("covers", node.covers.join(", "));
      for (const [against, verdict, error] of node.compared) row("compared", `${verdict}, own error ${error}, against ${against}`);
      this.detail.replaceChildren(heading, list);
    }

    type(value) {
      const [dtype, dims] = graph.values[value] ?? ["", []];
      return `${dtype}[${dims.join(", ")}]`;
    }

    link(text, id) {
      if (!id) return text;
      const button = make("button", text);
      button.type = "button";
      button.addEventListener("click", () => this.choose(id, true));
      return button;
    }
  })();

  function make(tag, text = "") {
    const element = document.createElement(tag);
    element.textContent = text;
    return element;
  }
}
