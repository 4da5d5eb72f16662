// The timeline: a view of [from, to] nanoseconds on every CPU, drawn on one canvas.

const GUTTER = 62;
const AXIS = 20;
const OVERVIEW = 30;
const MARKERS = 14;
const ROWS = 4;
const GS = 9;
const SPACE = 16;
const SHORTEST = 200; // nanoseconds that a view shows at least
const CATEGORY_COLOURS = ["--interrupt", "--exception", "--call", "--nmi", "--resumed"];

class Timeline {
  constructor(data) {
    this.data = data;
    this.canvas = byId("canvas");
    this.context = this.canvas.getContext("2d");
    this.span = Math.max(data.span, SHORTEST);
    this.from = 0;
    this.to = this.span;
    this.lane = 0;
    this.selected = null; // index of a handler in the lane
    this.finding = -1;
    this.due = false;
    this.row = data.cpus.length > 4 ? 12 : data.cpus.length > 1 ? 16 : 22; // height of a depth of handlers
    let top = AXIS + OVERVIEW + 8;
    for (const lane of data.cpus) {
      lane.rows = Math.min(lane.deepest + 1, ROWS);
      lane.top = top;
      top += MARKERS + lane.rows * this.row + 3 + GS + SPACE;
    }
    this.height = top;
    this.canvas.style.height = `${top}px`;
    this.most = this.totals();
    this.takeColours();
    this.listen();
    this.legend();
  }

  /** Handlers begun in each bin, on all CPUs. */
  totals() {
    this.sums = new Float64Array(this.data.cpus.length ? this.data.cpus[0].bins[0].length : 0);
    for (const lane of this.data.cpus) {
      lane.sums = new Float64Array(this.sums.length);
      for (const bins of lane.bins) bins.forEach((count, at) => { lane.sums[at] += count; });
      lane.sums.forEach((count, at) => { this.sums[at] += count; });
    }
    return this.sums.reduce((a, b) => Math.max(a, b), 1);
  }

  takeColours() {
    const probe = document.createElement("span");
    document.body.append(probe);
    const colour = (name) => { probe.style.color = `var(${name})`; return getComputedStyle(probe).color; };
    this.colours = {
      categories: CATEGORY_COLOURS.map(colour),
      gs: [null, colour("--gs-user"), colour("--gs-kernel")],
      text: colour("--text"), quiet: colour("--quiet"), line: colour("--line"), panel: colour("--panel"),
      window: colour("--window"), accent: colour("--accent"), error: colour("--error"), warning: colour("--warning"),
    };
    probe.remove();
  }

  legend() {
    const entries = this.data.categories.map((name, at) => [name, CATEGORY_COLOURS[at]]);
    entries.push(["kernel GS active", "--gs-kernel"], ["user GS active", "--gs-user"]);
    entries.push(["kernel code on the user's GS", "--window"], ["finding", "--error"]);
    for (const [name, colour] of entries) {
      const item = document.createElement("li");
      const swatch = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      const square = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      square.setAttribute("width", "12");
      square.setAttribute("height", "12");
      square.style.fill = `var(${colour})`;
      swatch.append(square);
      swatch.setAttribute("aria-hidden", "true");
      item.append(swatch, name);
      byId("legend").append(item);
    }
  }

  // -- the view

  get width() { return this.canvas.clientWidth - GUTTER - 8; }
  x(time) { return GUTTER + (time - this.from) / (this.to - this.from) * this.width; }
  time(x) { return this.from + (x - GUTTER) / this.width * (this.to - this.from); }

  show(from, to) {
    const length = Math.min(Math.max(to - from, SHORTEST), this.span);
    const start = Math.min(Math.max((from + to - length) / 2, 0), this.span - length);
    this.from = start;
    this.to = start + length;
    this.redraw();
  }

  zoom(factor, around = (this.from + this.to) / 2) {
    const length = Math.min(Math.max((this.to - this.from) / factor, SHORTEST), this.span);
    const before = (around - this.from) / (this.to - this.from);
    this.show(around - before * length, around - before * length + length);
  }

  move(share) {
    const step = (this.to - this.from) * share;
    this.show(this.from + step, this.to + step);
  }

  redraw() {
    if (this.due) return;
    this.due = true;
    requestAnimationFrame(() => { this.due = false; this.draw(); });
  }

  // -- drawing

  draw() {
    const scale = devicePixelRatio || 1;
    const width = this.canvas.clientWidth;
    if (!width) return;
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(this.height * scale);
    this.context.setTransform(scale, 0, 0, scale, 0, 0);
    this.context.font = "12px system-ui, sans-serif";
    this.context.textBaseline = "middle";
    this.drawAxis(width);
    this.drawOverview();
    for (const lane of this.data.cpus) this.drawLane(lane);
    this.canvas.dataset.from = this.from;
    this.canvas.dataset.to = this.to;
    byId("range").textContent = `${duration(this.to - this.from)} of ${duration(this.span)}, from ${duration(this.from)}`;
  }

  drawAxis(width) {
    const c = this.context;
    const wanted = (this.to - this.from) / Math.max(this.width / 110, 1);
    const power = 10 ** Math.floor(Math.log10(wanted));
    const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= wanted);
    const unit = [[1e9, "s"], [1e6, "ms"], [1e3, "µs"], [1, "ns"]].find(([size]) => this.to >= size) || [1, "ns"];
    const digits = Math.min(Math.max(Math.ceil(-Math.log10(step / unit[0]) - 1e-9), 0), 9);
    c.fillStyle = this.colours.quiet;
    c.strokeStyle = this.colours.line;
    c.lineWidth = 1;
    for (let time = Math.ceil(this.from / step) * step; time <= this.to; time += step) {
      const x = Math.round(this.x(time)) + 0.5;
      c.beginPath();
      c.moveTo(x, AXIS + OVERVIEW);
      c.lineTo(x, this.height);
      c.stroke();
      const label = `${(time / unit[0]).toFixed(digits)} ${unit[1]}`;
      if (x + c.measureText(label).width + 4 < width) c.fillText(label, x + 3, AXIS / 2 + OVERVIEW);
    }
  }

  drawOverview() {
    const c = this.context;
    const all = this.width / this.span;
    c.fillStyle = this.colours.quiet;
    c.fillText("all", 8, OVERVIEW / 2);
    const step = this.data.binWidth * all;
    for (let at = 0; at < this.sums.length && at * this.data.binWidth < this.span; at++) {
      const tall = Math.log1p(this.sums[at]) / Math.log1p(this.most) * (OVERVIEW - 6);
      if (tall) c.fillRect(GUTTER + at * step, OVERVIEW - tall, Math.max(step, 0.5), tall);
    }
    c.fillStyle = this.colours.error;
    for (const finding of this.data.findings) c.fillRect(GUTTER + finding.time * all - 0.5, 0, 1.5, OVERVIEW);
    c.strokeStyle = this.colours.accent;
    c.lineWidth = 1.5;
    c.strokeRect(GUTTER + this.from * all, 1, Math.max((this.to - this.from) * all, 3), OVERVIEW - 1);
  }

  drawLane(lane) {
    const c = this.context;
    const current = this.data.cpus[this.lane] === lane;
    c.fillStyle = current ? this.colours.text : this.colours.quiet;
    c.font = current ? "600 12px system-ui, sans-serif" : "12px system-ui, sans-serif";
    c.fillText(`CPU ${lane.cpu}`, 8, lane.top + MARKERS + lane.rows * this.row / 2);
    c.font = "12px system-ui, sans-serif";
    c.save();
    c.beginPath();
    c.rect(GUTTER, 0, this.width + 1, this.height);
    c.clip();
    this.drawGaps(lane);
    this.drawHandlers(lane);
    this.drawGs(lane);
    if (current && this.selected !== null) this.drawSelected(lane);
    this.drawMarkers(lane);
    c.restore();
  }

  drawHandlers(lane) {
    const c = this.context;
    const { start, length, depth, vector } = lane;
    const top = lane.top + MARKERS;
    const scale = this.width / (this.to - this.from);
    const filled = new Float64Array(ROWS).fill(-1); // rightmost pixel of each row
    let colour = -1;
    for (let at = lowerBound(lane.reach, this.from); at < start.length && start[at] <= this.to; at++) {
      const row = Math.min(depth[at], ROWS - 1);
      const right = (start[at] + length[at] - this.from) * scale;
      if (right <= filled[row]) continue;
      const left = Math.max((start[at] - this.from) * scale, -2);
      const end = Math.max(Math.min(right, this.width + 2), left + 1);
      filled[row] = Math.max(Math.ceil(left + 1), Math.floor(end));
      const category = this.data.vectors[vector[at]][1];
      if (category !== colour) c.fillStyle = this.colours.categories[colour = category];
      c.fillRect(GUTTER + left, top + row * this.row, end - left, this.row - 2);
    }
  }

  drawSelected(lane) {
    const c = this.context;
    const at = this.selected;
    const left = this.x(lane.start[at]);
    const wide = Math.max(this.x(lane.start[at] + lane.length[at]) - left, 2);
    const row = Math.min(lane.depth[at], ROWS - 1);
    c.strokeStyle = this.colours.text;
    c.lineWidth = 2;
    c.strokeRect(left, lane.top + MARKERS + row * this.row - 1, wide, this.row);
  }

  /** Where handlers were only counted: how many began, on a logarithmic scale. */
  drawGaps(lane) {
    const c = this.context;
    const tall = lane.rows * this.row - 2;
    const most = Math.log1p(lane.sums.reduce((a, b) => Math.max(a, b), 1));
    c.fillStyle = this.colours.quiet;
    for (const [since, until] of this.data.gaps) {
      if (until < this.from || since > this.to) continue;
      const last = Math.min(Math.ceil(Math.min(until, this.to) / this.data.binWidth), lane.sums.length);
      for (let at = Math.floor(Math.max(since, this.from) / this.data.binWidth); at < last; at++) {
        const left = Math.max(this.x(at * this.data.binWidth), this.x(since));
        const right = Math.min(this.x((at + 1) * this.data.binWidth), this.x(until));
        const high = Math.log1p(lane.sums[at]) / most * tall;
        c.fillRect(left, lane.top + MARKERS + tall - high, Math.max(right - left, 0.5), high);
      }
    }
  }

  drawGs(lane) {
    const c = this.context;
    const top = lane.top + MARKERS + lane.rows * this.row + 3;
    const scale = this.width / (this.to - this.from);
    const draw = (starts, lengths, colour, above, tall, least) => {
      let filled = -1;
      for (let at = Math.max(lowerBound(starts, this.from) - 1, 0); at < starts.length && starts[at] <= this.to; at++) {
        const right = (starts[at] + lengths[at] - this.from) * scale;
        if (right <= filled || lengths[at] * scale < least || !colour(at)) continue;
        const left = Math.max((starts[at] - this.from) * scale, -2);
        const end = Math.max(Math.min(right, this.width + 2), left + 0.75);
        filled = Math.floor(end);
        c.fillStyle = colour(at);
        c.fillRect(GUTTER + left, above, end - left, tall);
      }
    };
    draw(lane.gsStart, lane.gsLength, (at) => this.colours.gs[lane.gsState[at]], top, GS, 0);
    // Nearly every handler has one; they are worth seeing where they have a width.
    draw(lane.windowStart, lane.windowLength, () => this.colours.window, top + GS - 3, 4, 0.3);
  }

  drawMarkers(lane) {
    const c = this.context;
    this.data.findings.forEach((finding, at) => {
      if (finding.cpu !== lane.cpu || finding.time < this.from || finding.time > this.to) return;
      const x = this.x(finding.time);
      const half = at === this.finding ? 7 : 5;
      c.fillStyle = finding.severity === "error" ? this.colours.error : this.colours.warning;
      c.beginPath();
      c.moveTo(x - half, lane.top);
      c.lineTo(x + half, lane.top);
      c.lineTo(x, lane.top + MARKERS - 2);
      c.fill();
      c.fillRect(x - 0.5, lane.top, 1, MARKERS + lane.rows * this.row + 3 + GS);
    });
  }

  // -- selecting

  say(text) { byId("readout").textContent = text; }

  describe(lane, at) {
    const left = lane.until[at] ? `resumed at event ${lane.until[at]}` : "left another way";
    const name = this.data.vectors[lane.vector[at]][0];
    return `CPU ${lane.cpu}, event ${lane.event[at]}: ${name} at ${duration(lane.start[at], 6)}, `
      + `${duration(lane.length[at])}, ${left}. Interrupted: ${address(lane, at)}`;
  }

  select(lane, at, prefix = "") {
    this.lane = lane;
    this.selected = at;
    if (at !== null) this.say(prefix + this.describe(this.data.cpus[lane], at));
    this.redraw();
  }

  /** The handler of the current CPU before or after the selected one, or nearest to the middle of the view. */
  step(by) {
    const lane = this.data.cpus[this.lane];
    if (!lane || !lane.start.length) return;
    const middle = lowerBound(lane.start, (this.from + this.to) / 2);
    const at = Math.min(Math.max(this.selected === null ? middle : this.selected + by, 0), lane.start.length - 1);
    this.select(this.lane, at);
    const half = (this.to - this.from) / 2;
    if (lane.start[at] < this.from || lane.start[at] > this.to) this.show(lane.start[at] - half, lane.start[at] + half);
  }

  changeLane(by) {
    const lane = Math.min(Math.max(this.lane + by, 0), this.data.cpus.length - 1);
    if (lane === this.lane) return;
    this.select(lane, null);
    this.say(`CPU ${this.data.cpus[lane].cpu}`);
  }

  goTo(index) {
    const finding = this.data.findings[index];
    if (!finding) return;
    this.finding = index;
    const half = Math.min(this.to - this.from, Math.max(this.span / 500, 20 * SHORTEST)) / 2;
    this.show(finding.time - half, finding.time + half);
    const lane = Math.max(this.data.cpus.findIndex((each) => each.cpu === finding.cpu), 0);
    const said = `Finding ${index + 1} of ${this.data.findings.length}, ${finding.title}. `;
    const at = this.data.cpus[lane] ? this.handlerOf(this.data.cpus[lane], finding) : null;
    this.select(lane, at, said);
    if (at === null) this.say(said);
    for (const each of document.querySelectorAll(".finding.current")) each.classList.remove("current");
    const details = byId(`finding-${finding.id}`);
    if (details) details.classList.add("current");
  }

  /** The innermost handler that runs at the finding, or ends with it. */
  handlerOf(lane, finding) {
    for (let at = lowerBound(lane.start, finding.time + 1) - 1, left = 4096; at >= 0 && left; at--, left--) {
      if (lane.start[at] + lane.length[at] >= finding.time) return at;
    }
    return null;
  }

  nextFinding(by) {
    const found = this.data.findings;
    if (!found.length) return this.say("There are no findings.");
    const at = this.finding < 0 ? (by > 0 ? 0 : found.length - 1) : this.finding + by;
    return this.goTo(Math.min(Math.max(at, 0), found.length - 1));
  }

  openFinding() {
    const finding = this.data.findings[this.finding];
    if (finding) openDetails(byId(`finding-${finding.id}`));
  }

  // -- pointer and keys

  /** The handler drawn at a point of the canvas: [lane, index], or null. */
  at(x, y) {
    const time = this.time(x);
    const slack = (this.to - this.from) / this.width * 2;
    for (const [number, lane] of this.data.cpus.entries()) {
      const row = Math.floor((y - lane.top - MARKERS) / this.row);
      if (row < 0 || row >= lane.rows) continue;
      for (let at = lowerBound(lane.start, time + slack) - 1, left = 4096; at >= 0 && left; at--, left--) {
        const fits = Math.min(lane.depth[at], ROWS - 1) === row;
        if (fits && lane.start[at] + lane.length[at] + slack >= time) return [number, at];
      }
    }
    return null;
  }

  markerAt(x, y) {
    return this.data.findings.findIndex((finding) => {
      const lane = this.data.cpus.find((each) => each.cpu === finding.cpu);
      return lane && y >= lane.top && y < lane.top + MARKERS && Math.abs(this.x(finding.time) - x) < 7;
    });
  }

  listen() {
    const canvas = this.canvas;
    let drag = null;
    canvas.addEventListener("pointerdown", (event) => {
      drag = { x: event.offsetX, from: this.from, to: this.to, moved: false, overview: event.offsetY < OVERVIEW };
      canvas.setPointerCapture(event.pointerId);
      if (drag.overview) this.centre(event.offsetX);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!drag) return this.hover(event);
      if (drag.overview) return this.centre(event.offsetX);
      drag.moved = drag.moved || Math.abs(event.offsetX - drag.x) > 3;
      const by = (drag.x - event.offsetX) / this.width * (drag.to - drag.from);
      return drag.moved ? this.show(drag.from + by, drag.to + by) : undefined;
    });
    canvas.addEventListener("pointerup", (event) => {
      const click = drag && !drag.moved && !drag.overview;
      drag = null;
      if (!click) return;
      const marker = this.markerAt(event.offsetX, event.offsetY);
      const hit = this.at(event.offsetX, event.offsetY);
      if (marker >= 0) this.goTo(marker);
      else if (hit) this.select(...hit);
    });
    canvas.addEventListener("pointercancel", () => { drag = null; });
    canvas.addEventListener("dblclick", (event) => this.zoom(4, this.time(event.offsetX)));
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return; // the page scrolls
      event.preventDefault();
      this.zoom(2 ** (-event.deltaY / 200), this.time(event.offsetX));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => this.key(event));
    for (const button of document.querySelectorAll(".tools button")) {
      button.addEventListener("click", () => this.act(button.dataset.do));
    }
    for (const button of document.querySelectorAll("button.show")) {
      button.hidden = false;
      button.addEventListener("click", () => {
        this.goTo(this.data.findings.findIndex((finding) => finding.id === Number(button.dataset.finding)));
        canvas.scrollIntoView({ block: "center" });
        canvas.focus();
      });
    }
    new ResizeObserver(() => this.redraw()).observe(canvas);
  }

  centre(x) {
    const middle = (x - GUTTER) / this.width * this.span;
    const half = (this.to - this.from) / 2;
    this.show(middle - half, middle + half);
  }

  hover(event) {
    const hit = this.at(event.offsetX, event.offsetY);
    if (hit) this.say(this.describe(this.data.cpus[hit[0]], hit[1]));
  }

  act(what) {
    const actions = {
      in: () => this.zoom(2), out: () => this.zoom(0.5), all: () => this.show(0, this.span),
      previous: () => this.nextFinding(-1), next: () => this.nextFinding(1),
    };
    actions[what]();
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const far = event.shiftKey ? 0.5 : 0.1;
    const keys = {
      ArrowLeft: () => this.move(-far), ArrowRight: () => this.move(far),
      ArrowUp: () => this.changeLane(-1), ArrowDown: () => this.changeLane(1),
      "+": () => this.zoom(2), "=": () => this.zoom(2), "-": () => this.zoom(0.5),
      0: () => this.show(0, this.span), Home: () => this.show(0, this.to - this.from),
      End: () => this.show(this.span - (this.to - this.from), this.span),
      ",": () => this.step(-1), ".": () => this.step(1),
      p: () => this.nextFinding(-1), n: () => this.nextFinding(1), Enter: () => this.openFinding(),
    };
    const action = keys[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }
}
