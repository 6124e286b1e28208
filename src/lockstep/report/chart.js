// The curves: two panels over one axis of steps, drawn again whenever a choice or the width changes.
"use strict";
{
  const figure = document.getElementById("chart");
  const curves = JSON.parse(document.getElementById("page-data").textContent).curves;
  if (figure && curves.length) new (class {
    constructor() {
      this.svg = figure.querySelector("svg");
      this.readout = document.getElementById("readout");
      this.at = null; // index of the step under the cursor
      for (const input of figure.querySelectorAll("input")) {
        input.addEventListener("change", () => { this.at = null; this.draw(); });
      }
      this.svg.addEventListener("pointermove", (event) => this.point(event));
      this.svg.addEventListener("pointerdown", (event) => this.point(event));
      this.svg.addEventListener("keydown", (event) => this.key(event));
      new ResizeObserver(() => this.draw()).observe(this.svg);
      this.draw();
    }

    chosen(name) { return figure.querySelector(`input[name=${name}]:checked`).value; }

    add(tag, attributes, text) {
      const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
      if (text !== undefined) element.textContent = text;
      this.svg.append(element);
      return element;
    }

    draw() {
      const width = this.svg.clientWidth, height = this.svg.clientHeight;
      if (!width) return;
      this.svg.replaceChildren();
      this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      this.curve = curves.find((curve) => curve.id === this.chosen("curve"));
      this.series = this.curve[this.chosen("quantity")];
      this.diff = this.series.ours.map((value, i) =>
        value === null || this.series.torch[i] === null ? null : Math.abs(value - this.series.torch[i]));
      document.getElementById("curve-note").textContent = this.curve.note;

      const compared = this.diff.some((value) => value !== null);
      const left = 58, right = width - 14, split = compared ? Math.round(height * 0.6) : height - 10;
      const steps = this.curve.steps, first = steps[0], last = steps[steps.length - 1];
      this.x = (step) => left + (right - left) * (last > first ? (step - first) / (last - first) : 0.5);
      const box = { left, right };
      this.main = this.panel({ ...box, top: 26, bottom: split - 14 },
        [...this.series.torch, ...this.series.ours], document.getElementById("log").checked,
        this.chosen("quantity") === "loss" ? "loss, nats per token" : "gradient norm before clipping");
      this.line("torch", this.series.torch, this.main);
      this.line("ours", this.series.ours, this.main);
      const bound = this.series.bound;
      this.lower = null;
      if (compared) {
        this.lower = this.panel({ ...box, top: split + 22, bottom: height - 26 },
          bound === null ? this.diff : [...this.diff, bound], true, "difference, absolute");
        this.line("diff", this.diff, this.lower);
        if (bound !== null) this.bound(bound, left, right);
      }
      this.steps(first, last, left, right, height);
      this.mark();
    }

    // A panel with its grid; returns how a value becomes a height.
    panel({ left, right, top, bottom }, values, logarithmic, title) {
      const known = values.filter((value) => value !== null);
      const ticks = logarithmic ? logTicks(known) : linearTicks(known);
      const map = (value) => {
        const v = logarithmic ? Math.log10(Math.max(value, ticks.floor)) : value;
        const [low, high] = logarithmic ? [Math.log10(ticks.low), Math.log10(ticks.high)] : [ticks.low, ticks.high];
        return bottom - (bottom - top) * ((v - low) / (high - low || 1));
      };
      this.add("text", { class: "title", x: left, y: top - 10 }, title);
      for (const [value, label] of ticks.marks) {
        const y = map(value);
        this.add("line", { class: "grid", x1: left, x2: right, y1: y, y2: y });
        this.add("text", { class: "axis", x: left - 8, y: y + 4, "text-anchor": "end" }, label);
      }
      return map;
    }

    line(name, values, map) {
      let path = "", open = false;
      const lone = [];
      values.forEach((value, i) => {
        if (value === null) { open = false; return; }
        path += `${open ? "L" : "M"}${this.x(this.curve.steps[i]).toFixed(1)} ${map(value).toFixed(1)}`;
        open = true;
        lone.push(i);
      });
      this.add("path", { class: name, d: path });
      if (lone.length === 1) {
        this.add("circle", { class: name, cx: this.x(this.curve.steps[lone[0]]), cy: map(values[lone[0]]), r: 3 });
      }
    }

    bound(value, left, right) {
      const y = this.lower(value);
      this.add("line", { class: "bound", x1: left, x2: right, y1: y, y2: y });
      this.add("text", { class: "bound-label", x: right, y: y - 5, "text-anchor": "end" }, `bound ${short(value)}`);
    }

    steps(first, last, left, right, height) {
      const room = Math.max(1, Math.floor((right - left) / 90));
      for (const [value, label] of linearTicks([first, last], room).marks) {
        if (value < first || value > last || !Number.isInteger(value)) continue;
        this.add("text", { class: "axis", x: this.x(value), y: height - 8, "text-anchor": "middle" }, label);
      }
      this.add("text", { class: "axis", x: left - 8, y: height - 8, "text-anchor": "end" }, "step");
    }

    point(event) {
      const box = this.svg.getBoundingClientRect();
      const x = event.clientX - box.left;
      let best = 0;
      this.curve.steps.forEach((step, i) => {
        if (Math.abs(this.x(step) - x) < Math.abs(this.x(this.curve.steps[best]) - x)) best = i;
      });
      this.at = best;
      this.mark();
    }

    key(event) {
      const last = this.curve.steps.length - 1;
      const now = this.at === null ? 0 : this.at;
      const to = { ArrowLeft: now - 1, ArrowRight: this.at === null ? 0 : now + 1, Home: 0, End: last }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      this.at = Math.min(last, Math.max(0, to));
      this.mark();
    }

    mark() {
      for (const old of this.svg.querySelectorAll(".mark")) old.remove();
      const i = this.at ?? this.curve.steps.length - 1;
      const ours = this.series.ours[i], torch = this.series.torch[i], diff = this.diff[i];
      const x = this.x(this.curve.steps[i]);
      if (this.at !== null) {
        this.add("line", { class: "cursor mark", x1: x, x2: x, y1: 20, y2: this.svg.clientHeight - 24 });
        for (const [name, value, map] of [["torch", torch, this.main], ["ours", ours, this.main], ["diff", diff, this.lower]]) {
          if (value !== null && map) this.add("circle", { class: `${name} mark`, cx: x, cy: map(value), r: 3.5 });
        }
      }
      const part = (name, value) => value === null ? "" : ` · ${name} ${short(value)}`;
      this.readout.textContent = `${this.at === null ? "last step" : "step"} ${this.curve.steps[i]}`
        + part("this engine", ours) + part("PyTorch", torch) + part("difference", diff);
    }
  })();

  function short(value) {
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size < 1e-3 || size >= 1e6) {
      const [digits, power] = value.toExponential(2).split("e");
      return `${Number(digits)}e${Number(power)}`;
    }
    return String(Number(value.toPrecision(size < 10 ? 5 : 6)));
  }

  function linearTicks(values, wanted = 4) {
    let low = Math.min(...values), high = Math.max(...values);
    if (!values.length) [low, high] = [0, 1];
    if (low === high) { low -= Math.abs(low) * 0.1 || 0.5; high += Math.abs(high) * 0.1 || 0.5; }
    const rough = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
    low = Math.floor(low / step) * step;
    high = Math.ceil(high / step) * step;
    const marks = [];
    for (let i = 0; low + i * step <= high + step / 2; i++) {
      const value = Number((low + i * step).toPrecision(12));
      marks.push([value, short(value)]);
    }
    return { low, high, marks };
  }

  function logTicks(values) {
    const positive = values.filter((value) => value > 0);
    const hasZero = positive.length < values.length;
    const top = positive.length ? Math.max(...positive) : 1, bottom = positive.length ? Math.min(...positive) : 0.1;
    let from = Math.floor(Math.log10(bottom)) - (hasZero ? 1 : 0), to = Math.ceil(Math.log10(top));
    if (from === to) to += 1;
    const marks = [], every = Math.ceil((to - from) / 5);
    for (let e = from; e <= to; e++) {
      const zero = hasZero && e === from;
      if (zero || (e - from) % every === 0) marks.push([10 ** e, zero ? "0" : e >= -2 && e < 4 ? String(Number((10 ** e).toPrecision(1))) : `1e${e}`]);
      if (to - from <= 2 && !zero && e < to) for (const m of [2, 5]) marks.push([m * 10 ** e, short(m * 10 ** e)]);
    }
    return { low: 10 ** from, high: 10 ** to, floor: 10 ** from, marks };
  }
}
