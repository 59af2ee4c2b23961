"use strict";
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

  // Light and dark: the system decides until the reader does.
  const root = document.documentElement;
  $("#theme").addEventListener("click", () => {
    const isDark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = isDark ? "light" : "dark";
    try { localStorage.setItem("melior-theme", root.dataset.theme); } catch { /* private mode */ }
  });

  // Copy.
  for (const button of $$("[data-copy]")) {
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(button.dataset.copy);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren($("code", button.parentElement));
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1600);
    });
  }

  // Charts: a cursor that reads out the nearest step.
  const write = (value, isPercent) => {
    if (isPercent) return `${+(100 * value).toFixed(1)}%`;
    const size = Math.abs(value);
    const text = size && (size < 1e-3 || size >= 1e9)
      ? value.toExponential(2) : `${+value.toPrecision(4)}`;
    return text.replace("-", "\u2212");
  };
  const svgTag = (name, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    return node;
  };
  for (const figure of $$("[data-chart]")) {
    const chart = JSON.parse(figure.dataset.chart);
    const svg = $(":scope > svg", figure), cursor = $(".cursor", figure), readout = $(".readout", figure);
    const place = ([low, high, start, end], value) => start + (value - low) / (high - low) * (end - start);
    const steps = [...new Set(chart.lines.flatMap(([, , points]) => points.map((p) => p[0])))]
      .sort((a, b) => a - b);
    let at = -1;
    const nearest = (points, step) =>
      points.reduce((best, p) => (Math.abs(p[0] - step) < Math.abs(best[0] - step) ? p : best));
    const show = (index) => {
      at = Math.max(0, Math.min(steps.length - 1, index));
      const step = steps[at], x = place(chart.x, step);
      cursor.replaceChildren(svgTag("line", { x1: x, x2: x, y1: chart.y[3], y2: chart.y[2] }));
      const rows = [`${chart.over} ${step.toLocaleString("en")}`];
      for (const [name, hue, points] of chart.lines) {
        const [own, value] = nearest(points, step);
        if (Math.abs(own - step) > (chart.x[1] - chart.x[0]) / 25) continue;
        cursor.append(svgTag("circle", { cx: place(chart.x, own), cy: place(chart.y, value), r: 4, class: `hue${hue}` }));
        rows.push(`${name} ${write(value, chart.percent)}${own === step ? "" : ` (${chart.over} ${own.toLocaleString("en")})`}`);
      }
      readout.replaceChildren(...rows.map((row) => Object.assign(document.createElement("div"), { textContent: row })));
      const share = x / 360;
      readout.style.left = share < 0.5 ? `calc(${100 * share}% + 12px)` : "auto";
      readout.style.right = share < 0.5 ? "auto" : `calc(${100 * (1 - share)}% + 12px)`;
    };
    const hide = () => { at = -1; cursor.replaceChildren(); readout.replaceChildren(); };
    const point = (event) => {
      const box = svg.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width * 360;
      const step = chart.x[0] + (x - chart.x[2]) / (chart.x[3] - chart.x[2]) * (chart.x[1] - chart.x[0]);
      let best = 0;
      steps.forEach((s, i) => { if (Math.abs(s - step) < Math.abs(steps[best] - step)) best = i; });
      show(best);
    };
    svg.addEventListener("pointermove", point);
    svg.addEventListener("pointerdown", point);
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", (event) => {
      const stride = Math.max(1, Math.round(steps.length / 40));
      const moves = { ArrowRight: at + stride, ArrowLeft: at < 0 ? steps.length - 1 : at - stride, Home: 0, End: steps.length - 1 };
      if (event.key === "Escape") hide();
      if (!(event.key in moves)) return;
      event.preventDefault();
      show(moves[event.key]);
    });
  }

  // Samples: search, filter, order, and long answers folded until asked for.
  const list = $(".samples");
  if (!list) return;
  const PAGE = 20;
  const samples = $$(".sample", list);
  const words = samples.map((sample) => $$(".text, .facts", sample).map((t) => t.textContent).join("\n").toLowerCase());
  const search = $(".tools input"), order = $(".tools select"), found = $(".found"), more = $(".more");
  let kind = "all", limit = PAGE;

  const fold = (sample) => {
    const answers = $(".answers", sample);
    if (answers.dataset.seen) return;
    answers.dataset.seen = "1";
    answers.classList.add("folded");
    const long = $$(".text", answers).filter((text) => text.scrollHeight > text.clientHeight + 4);
    for (const text of long) text.classList.add("cut");
    if (!long.length) {
      answers.classList.remove("folded");
      return;
    }
    const button = Object.assign(document.createElement("button"), { type: "button", className: "unfold", textContent: "Show all" });
    button.setAttribute("aria-expanded", "false");
    button.addEventListener("click", () => {
      const isFolded = answers.classList.toggle("folded");
      button.textContent = isFolded ? "Show all" : "Show less";
      button.setAttribute("aria-expanded", String(!isFolded));
    });
    answers.after(button);
  };
  const highlight = (term, shown) => {
    if (!("highlights" in CSS)) return;
    CSS.highlights.delete("found");
    if (!term) return;
    const ranges = [];
    for (const sample of shown) {
      for (const block of $$(".text", sample)) {
        const node = block.firstChild, text = node ? node.data.toLowerCase() : "";
        if (!node || text.length !== node.data.length) continue;
        for (let i = text.indexOf(term); i >= 0 && ranges.length < 2000; i = text.indexOf(term, i + term.length)) {
          const range = new Range();
          range.setStart(node, i);
          range.setEnd(node, i + term.length);
          ranges.push(range);
        }
      }
    }
    CSS.highlights.set("found", new Highlight(...ranges));
  };
  const update = () => {
    const term = search.value.trim().toLowerCase();
    const hits = samples.filter((sample, i) =>
      (kind === "all" || sample.dataset.kinds.split(" ").includes(kind)) && words[i].includes(term));
    const sign = order ? { gain: -1, loss: 1 }[order.value] : undefined;
    const sorted = sign
      ? [...hits].sort((a, b) => sign * ((+a.dataset.gain || 0) - (+b.dataset.gain || 0))) : hits;
    const shown = sorted.slice(0, limit);
    const isShown = new Set(shown);
    for (const sample of samples) sample.hidden = !isShown.has(sample);
    list.append(...(sign ? sorted : samples));
    shown.forEach(fold);
    highlight(term, shown);
    found.textContent = `${hits.length} of ${samples.length}`;
    $(".empty").hidden = hits.length > 0;
    more.hidden = hits.length <= limit;
    more.textContent = `Show more (${hits.length - shown.length} left)`;
  };
  const restart = () => { limit = PAGE; update(); };
  search.addEventListener("input", restart);
  if (order) order.addEventListener("change", restart);
  for (const button of $$("[data-filter]")) {
    button.addEventListener("click", () => {
      kind = button.dataset.filter;
      for (const other of $$("[data-filter]")) other.setAttribute("aria-pressed", String(other === button));
      restart();
    });
  }
  more.addEventListener("click", () => { limit += 4 * PAGE; update(); });
  update();
  for (const fact of ["beforeprint", "afterprint"]) {
    addEventListener(fact, () => {
      for (const part of $$("details")) part.open = fact === "beforeprint" ? (part.dataset.was = part.open, true) : part.dataset.was === "true";
    });
  }
})();
