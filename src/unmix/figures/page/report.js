"use strict";
/* Makes the report interactive: tables that sort, curves with values under the cursor, figures that
   can be enlarged. Without it the page shows the same numbers. */
(() => {
  const root = document.documentElement;
  const $ = (query, from = document) => [...from.querySelectorAll(query)];
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  // Kept when a page that is still being written replaces its content.
  const state = { hidden: new Set(), time: false, zoom: {}, sort: {}, open: {} };
  let charts = [], data = { looks: [], names: [], charts: [] };

  const color = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const alpha = (hex, part) => hex + Math.round(255 * part).toString(16).padStart(2, "0");
  // As unmix.display writes them: the deviation has two significant digits.
  const plain = (value) => {
    const size = Math.abs(value);
    return size !== 0 && (size >= 1e6 || size < 1e-4) ? value.toExponential(2) : String(+value.toPrecision(4));
  };
  const written = (value, spread, percent) => {
    if (value == null) return "–";
    if (percent) return value.toFixed(1) + (spread ? ` ± ${spread.toFixed(1)}` : "");
    if (!spread) return plain(value);
    const decimals = 1 - Math.floor(Math.log10(spread));
    if (decimals > 8 || decimals < 0) return `${plain(value)} ± ${plain(spread)}`;
    return `${value.toFixed(decimals)} ± ${spread.toFixed(decimals)}`;
  };

  /* Tables */
  function sortable(table) {
    const body = table.tBodies[0], name = table.dataset.name;
    $("thead th", table).forEach((head, column) => {
      const button = make("button", { type: "button" }, ...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const first = head.classList.contains("number") ? "descending" : "ascending";
        const other = first === "ascending" ? "descending" : "ascending";
        sort(column, head.getAttribute("aria-sort") === first ? other : first);
      });
    });
    function sort(column, direction) {
      $("thead th", table).forEach((head, i) =>
        i === column ? head.setAttribute("aria-sort", direction) : head.removeAttribute("aria-sort"));
      const numeric = table.tHead.rows[0].cells[column].classList.contains("number");
      const key = (row) => row.cells[column].dataset.v;
      const sign = direction === "ascending" ? 1 : -1;
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === "");  // what is missing comes last
        return sign * (numeric ? x - y : x.localeCompare(y, undefined, { numeric: true }));
      };
      body.append(...[...body.rows].sort(compare));
      state.sort[name] = [column, direction];
    }
    const before = state.sort[name];
    if (before && before[0] < table.tHead.rows[0].cells.length) sort(...before);
  }

  /* A hint where a box scrolls sideways. */
  function hint(box) {
    const line = make("span", { className: "hint", hidden: true, textContent: "Scroll sideways for more →" });
    box.before(line);
    const measure = () => { line.hidden = box.scrollWidth <= box.clientWidth + 1; };
    new ResizeObserver(measure).observe(box);
    measure();
  }

  /* Curves */
  function marker(context, look, x, y, radius) {
    context.beginPath();
    if (!look.corners.length) context.arc(x, y, radius * 0.86, 0, 2 * Math.PI);
    look.corners.forEach(([a, b], i) => context[i ? "lineTo" : "moveTo"](x + radius * a, y + radius * b));
    context.closePath();
    context.fillStyle = look.hollow ? color("--paper") : look.color;
    context.strokeStyle = look.color;
    context.lineWidth = 1.4 * devicePixelRatio;
    context.setLineDash([]);
    context.fill();
    context.stroke();
  }

  class Chart {
    constructor(figure, number) {
      this.figure = figure;
      this.number = number;
      this.own = data.charts[number];
      this.title = figure.closest("section").querySelector("h2").textContent;
      this.plot = figure.querySelector(".plot");
      this.at = figure.querySelector(".now");
      this.host = make("div", { className: "live", tabIndex: 0 });
      this.host.setAttribute("role", "group");
      this.host.setAttribute("aria-label",
        `${this.own.label}: curves. Left and right arrow keys move the cursor, plus and minus zoom, Escape resets.`);
      this.spoken = make("span", { className: "unseen" });
      this.spoken.setAttribute("aria-live", "polite");
      this.plot.append(this.host, this.spoken);
      this.initial = this.at.textContent;
      this.tools();
      this.legend();
      this.host.addEventListener("keydown", (event) => this.key(event));
      new ResizeObserver(() => this.resize()).observe(this.plot);
      this.draw();
    }

    get time() { return state.time && this.own.time; }

    get zoom() { return state.zoom[this.title]; }

    set zoom(range) {
      if (range) state.zoom[this.title] = range; else delete state.zoom[this.title];
      this.reset.hidden = !range;
    }

    tools() {
      const bar = this.figure.querySelector(".tools");
      bar.replaceChildren();
      if (this.own.time) {
        const group = make("span", { className: "group" });
        group.setAttribute("role", "group");
        group.setAttribute("aria-label", "Horizontal axis");
        this.axes = [["Epochs", false], ["Time", true]].map(([text, time]) => {
          const button = make("button", { type: "button", textContent: text });
          button.addEventListener("click", () => {
            state.time = time;
            charts.forEach((chart) => { if (chart.own.time) { chart.zoom = null; chart.draw(); } });
          });
          return button;
        });
        group.append(...this.axes);
        bar.append(group);
      }
      this.reset = make("button", { type: "button", textContent: "Reset zoom", hidden: !this.zoom });
      this.reset.addEventListener("click", () => { this.zoom = null; this.draw(); this.host.focus(); });
      bar.append(this.reset, enlarger(this.figure));
    }

    legend() {
      this.entries = new Map();
      for (const item of $(".legend li", this.figure)) {
        const value = item.querySelector(".value");
        if (item.dataset.c === "") {
          item.replaceChildren(make("button", { type: "button", disabled: true }, ...item.childNodes));
          continue;
        }
        const c = +item.dataset.c, name = data.names[c];
        const button = make("button", { type: "button", title: "Show or hide; double-click: this one alone" }, ...item.childNodes);
        item.append(button);
        button.addEventListener("click", () => {
          if (!state.hidden.delete(name)) state.hidden.add(name);
          charts.forEach((chart) => chart.visible());
        });
        button.addEventListener("dblclick", () => {
          state.hidden = new Set(data.names.filter((other) => other !== name));
          charts.forEach((chart) => chart.visible());
        });
        this.entries.set(c, { button, value, last: value.textContent });
      }
      if (this.entries.size > 4) {
        const all = make("button", { type: "button", textContent: "Show all" });
        all.addEventListener("click", () => { state.hidden.clear(); charts.forEach((chart) => chart.visible()); });
        const none = make("button", { type: "button", textContent: "Hide all" });
        none.addEventListener("click", () => { state.hidden = new Set(data.names); charts.forEach((chart) => chart.visible()); });
        this.figure.querySelector(".legendbox").append(make("div", { className: "tools" }, all, none));
      }
    }

    get unit() { return this.time ? this.own.time : "epochs"; }

    shows(line) { return !state.hidden.has(data.names[line.c]); }

    draw() {
      const lines = this.own.lines, percent = this.own.percent;
      const tables = lines.map((line) => {
        const xs = this.time ? line.t : line.x;
        const kept = [...xs.keys()].filter((i) => xs[i] != null);
        const of = (make) => kept.map((i) => line.y[i] == null ? null : make(line.y[i], line.d[i]));
        return [kept.map((i) => xs[i]), of((y) => y), of((y, d) => y - d), of((y, d) => y + d)];
      });
      this.axes?.forEach((button, i) => button.setAttribute("aria-pressed", String(Boolean(this.time) === (i === 1))));
      this.u?.destroy();
      this.u = null;
      this.joined = uPlot.join(tables);
      if (!lines.length) return;
      const soft = color("--soft"), faint = color("--line");
      const axis = { stroke: soft, font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif",
        grid: { stroke: faint, width: 1 }, ticks: { show: false } };
      const xs = this.joined[0], whole = [this.time ? 0 : xs[0], xs[xs.length - 1]];
      if (whole[0] === whole[1]) { whole[0] -= 1; whole[1] += 1; }
      this.whole = whole;
      const series = lines.flatMap((line) => {
        const look = data.looks[line.c], show = this.shows(line);
        return [
          { stroke: look.color, width: 1.8, dash: look.dash.length ? look.dash : undefined, show, points: { show: false } },
          { show, stroke: "transparent", width: 0, points: { show: false } },
          { show, stroke: "transparent", width: 0, points: { show: false } },
        ];
      });
      this.u = new uPlot({
        ...this.size(), series: [{}, ...series], legend: { show: false }, padding: [10, 12, 0, 0],
        bands: lines.flatMap((line, i) => line.d.some((d) => d > 0)
          ? [{ series: [3 * i + 3, 3 * i + 2], fill: alpha(data.looks[line.c].color, 0.15) }] : []),
        scales: {
          x: { time: false, range: () => this.zoom || this.whole },
          y: { range: (u, low, high) => this.limits(low, high) },
        },
        axes: [
          { ...axis, label: this.time ? `time in ${this.own.time}` : "epochs", labelSize: 20, size: 30, grid: { show: false },
            incrs: this.time ? undefined : [1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1000, 2000, 5000, 10000] },
          { ...axis, size: (u, values) => 14 + 7 * Math.max(...(values || [""]).map((value) => String(value).length)) },
        ],
        cursor: {
          y: false,
          drag: { x: true, y: false, dist: 6 },
          points: { size: 9 },
          dataIdx: (u, i, closest, value) => this.nearest(u, i, closest, value),
        },
        hooks: {
          setCursor: [() => this.values()],
          setSelect: [(u) => this.selected(u)],
          draw: [(u) => this.references(u)],
          drawSeries: [(u, i) => this.markers(u, i)],
        },
      }, this.joined, this.host);
      // uPlot's own double click would not reset the range that is kept here.
      this.u.over.addEventListener("dblclick", () => { this.zoom = null; this.draw(); });
      this.visible();
    }

    size() {
      const width = Math.max(180, Math.floor(this.plot.clientWidth));
      const large = this.figure.closest("dialog");
      return { width, height: large ? Math.max(240, Math.floor(innerHeight * 0.68)) : width < 480 ? 250 : 330 };
    }

    resize() {
      const { width, height } = this.size();
      if (this.u && (this.u.width !== width || this.u.height !== height)) this.u.setSize({ width, height });
    }

    limits(low, high) {
      const values = this.own.references.map(([, value]) => value);
      if (low == null || high == null) { low = values[0] ?? 0; high = values[0] ?? 1; }
      low = Math.min(low, ...values); high = Math.max(high, ...values);
      const least = this.own.percent ? 2 : 0.02 * Math.max(Math.abs(low), Math.abs(high), 1e-9);
      const spare = 0.06 * (high - low) + Math.max(0, least - (high - low)) / 2;
      return [low - spare, high + spare];
    }

    nearest(u, i, closest, value) {
      if (i === 0) return closest;
      const ys = this.joined[i], xs = this.joined[0];
      let best = closest, distance = Infinity;
      for (let k = 0; k < xs.length; k++)
        if (ys[k] != null && Math.abs(xs[k] - value) < distance) { best = k; distance = Math.abs(xs[k] - value); }
      return best;
    }

    values() {
      const u = this.u;
      if (!u) return;
      const { left, idx } = u.cursor;
      if (left == null || left < 0 || idx == null) {
        this.at.textContent = this.initial;
        this.entries.forEach((entry) => { entry.value.textContent = entry.last; });
        return;
      }
      const x = this.joined[0][idx];
      this.at.textContent = this.time ? `At ${+x.toPrecision(3)} ${this.own.time}` : `Epoch ${x}`;
      this.own.lines.forEach((line, i) => {
        const k = this.nearest(u, 3 * i + 1, idx, x), own = this.time ? line.t : line.x;
        const here = own.indexOf(this.joined[0][k]), y = line.y[here];
        const most = Math.max(...line.n);
        let text = written(y, line.d[here], this.own.percent);
        if (y != null && line.n[here] < most) text += ` (${line.n[here]} of ${most} seeds)`;
        if (!this.time && own[here] !== x) text += ` (epoch ${own[here]})`;
        this.entries.get(line.c).value.textContent = text;
      });
    }

    selected(u) {
      if (u.select.width < 2) return;
      const range = [u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x")];
      u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
      this.zoomTo(range);
    }

    zoomTo([low, high]) {
      low = Math.max(low, this.whole[0]); high = Math.min(high, this.whole[1]);
      if (!(high - low > 1e-9)) return;
      this.zoom = low <= this.whole[0] && high >= this.whole[1] ? null : [low, high];
      this.u.setScale("x", { min: low, max: high });
    }

    references(u) {
      const context = u.ctx;
      context.save();
      context.strokeStyle = color("--soft");
      context.lineWidth = devicePixelRatio;
      context.setLineDash([6 * devicePixelRatio, 3 * devicePixelRatio]);
      for (const [, value] of this.own.references) {
        const y = u.valToPos(value, "y", true);
        context.beginPath();
        context.moveTo(u.bbox.left, y);
        context.lineTo(u.bbox.left + u.bbox.width, y);
        context.stroke();
      }
      context.restore();
    }

    markers(u, i) {
      if (i % 3 !== 1 || !u.series[i].show) return;
      const ys = this.joined[i], look = data.looks[this.own.lines[(i - 1) / 3].c];
      const { min, max } = u.scales.x, places = [];
      this.joined[0].forEach((x, k) => { if (ys[k] != null && x >= min && x <= max) places.push(k); });
      const every = Math.max(1, Math.ceil(places.length / 12));
      u.ctx.save();
      places.reverse().forEach((k, n) => {
        if (n % every) return;
        marker(u.ctx, look, u.valToPos(this.joined[0][k], "x", true), u.valToPos(ys[k], "y", true), 4.4 * devicePixelRatio);
      });
      u.ctx.restore();
    }

    visible() {
      this.own.lines.forEach((line, i) => {
        const show = this.shows(line);
        this.entries.get(line.c).button.setAttribute("aria-pressed", String(show));
        if (this.u && this.u.series[3 * i + 1].show !== show)
          for (const k of [1, 2, 3]) this.u.setSeries(3 * i + k, { show });
      });
      if (this.u) this.u.redraw();
    }

    key(event) {
      const u = this.u, xs = this.joined[0];
      if (!u || event.ctrlKey || event.metaKey || event.altKey) return;
      const now = u.cursor.left >= 0 && u.cursor.idx != null ? u.cursor.idx : null;
      const [low, high] = this.zoom || this.whole, first = xs.findIndex((x) => x >= low);
      let last = xs.length - 1;
      while (last > 0 && xs[last] > high) last--;
      const moves = { ArrowRight: now == null ? first : now + 1, ArrowLeft: now == null ? last : now - 1, Home: first, End: last };
      if (event.key in moves) {
        const to = Math.min(last, Math.max(first, moves[event.key]));
        u.setCursor({ left: u.valToPos(xs[to], "x"), top: u.over.clientHeight / 2 });
        this.spoken.textContent = `${this.at.textContent}: ` + this.own.lines.filter((line) => this.shows(line))
          .map((line) => `${data.names[line.c]} ${this.entries.get(line.c).value.textContent}`).join(", ");
      } else if (event.key === "+" || event.key === "=" || event.key === "-") {
        const middle = now == null ? (low + high) / 2 : xs[now], part = event.key === "-" ? 1 : 0.25;
        this.zoomTo([middle - part * (high - low), middle + part * (high - low)]);
      } else if (event.key === "Escape" && this.zoom) {
        this.zoom = null;
        this.draw();
      } else return;
      event.preventDefault();
      event.stopPropagation();
    }
  }

  /* Enlarged figures: the figure itself moves into the dialog and back. */
  const dialog = document.getElementById("large");
  let place = null;
  function enlarge(figure) {
    if (dialog.open) return;
    place = document.createComment("figure");
    figure.before(place);
    dialog.querySelector("strong").textContent = figure.closest("section").querySelector("h2").textContent;
    dialog.querySelector(".hold").append(figure);
    dialog.showModal();
    charts.forEach((chart) => chart.resize());
  }
  function enlarger(figure) {
    const button = make("button", { type: "button", className: "enlarge", textContent: "Enlarge" });
    button.addEventListener("click", () => enlarge(figure));
    return button;
  }
  dialog.querySelector(".close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => {
    const figure = dialog.querySelector("figure");
    place.replaceWith(figure);
    charts.forEach((chart) => chart.resize());
    figure.querySelector(".enlarge").focus();
  });

  /* Commands */
  function copier(block) {
    const text = block.querySelector("pre");
    const button = make("button", { type: "button", textContent: "Copy" });
    button.setAttribute("aria-label", `Copy the command: ${block.querySelector("p").textContent}`);
    button.addEventListener("click", async () => {
      let done = true;
      try {
        await navigator.clipboard.writeText(text.textContent);
      } catch {  // not allowed, as in files of some browsers
        const range = document.createRange();
        range.selectNodeContents(text);
        getSelection().removeAllRanges();
        getSelection().addRange(range);
        done = document.execCommand("copy");
      }
      button.textContent = done ? "Copied" : "Press Ctrl+C";
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
    block.append(button);
  }

  const label = (element) =>
    `${element.closest("section")?.querySelector("h2").textContent}: ${element.querySelector("summary").textContent}`;
  function start() {
    root.classList.add("js");
    data = JSON.parse(document.getElementById("data").textContent);
    $("table").forEach((table) => { if (!table.classList.contains("plain")) sortable(table); });
    $(".scroll").forEach(hint);
    $(".command").forEach(copier);
    $("details").forEach((element) => {
      if (label(element) in state.open) element.open = state.open[label(element)];
      element.addEventListener("toggle", () => { state.open[label(element)] = element.open; });
    });
    $("figure.picture").forEach((figure) => {
      figure.querySelector(".tools").replaceChildren(enlarger(figure));
      figure.querySelector(".scroll").addEventListener("click", () => enlarge(figure));
    });
    charts = $("figure.chart").map((figure) => new Chart(figure, +figure.dataset.chart));
  }
  start();

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.forEach((chart) => chart.draw()));
  // Browsers without ::details-content print closed details closed.
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = $("details:not([open])");
    closed.forEach((element) => { element.open = true; });
  });
  addEventListener("afterprint", () => closed.forEach((element) => { element.open = false; }));

  /* A page of runs that are still trained asks for itself again. */
  let tag = root.dataset.tag ? `"${root.dataset.tag}"` : null;
  async function refresh() {
    if (!dialog.open && !document.hidden) {
      try {
        const headers = tag ? { "If-None-Match": tag } : {};
        const answer = await fetch(location.href, { cache: "no-store", headers });
        if (answer.status === 304) {
          schedule();
          return;
        }
        if (!answer.ok) throw new Error(answer.statusText);
        tag = answer.headers.get("ETag");
        const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
        const page = fresh.getElementById("page"), [left, top] = [scrollX, scrollY];
        charts.forEach((chart) => chart.u?.destroy());
        document.getElementById("page").replaceWith(document.adoptNode(page));
        document.title = fresh.title;
        if (fresh.documentElement.dataset.refresh) root.dataset.refresh = fresh.documentElement.dataset.refresh;
        else delete root.dataset.refresh;
        start();
        scrollTo(left, top);
      } catch {
        tag = null;  // the next answer replaces the notice
        const box = document.querySelector(".running");
        if (box && !box.classList.contains("lost")) {
          box.classList.add("lost");
          box.append(make("p", { textContent: `No answer since ${new Date().toLocaleTimeString()}: is unmix watch still running? The page shows the last state.` }));
        }
      }
    }
    schedule();
  }
  function schedule() {
    if (root.dataset.refresh) setTimeout(refresh, 1000 * root.dataset.refresh);
  }
  if (location.protocol.startsWith("http")) schedule();
})();
