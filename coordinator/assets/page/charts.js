"use strict";
// Line charts by uPlot, and the cosines as SVG. Colours are those of the style, read again when the
// scheme changes.

const MAX_COLOURS = 8;

function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function colour(index) {
  return css("--s" + (index % MAX_COLOURS));
}

// Pixels that an axis with these labels takes; 12 px digits are about 7 wide.
function labelsWidth(_, labels) {
  return 22 + 7 * Math.max(6, ...(labels || []).map((label) => label.length));
}

class LineChart {
  constructor(id) {
    this.place = document.getElementById(id);
    this.plot = null;
    this.shape = "";
    new ResizeObserver(() => this.resize()).observe(this.place);
  }

  // columns: [x, y...]; names of the y columns; options: {log, empty, label, x, points}.
  show(columns, names, options) {
    this.place.setAttribute("aria-label", options.label);
    if (columns.length < 2 || columns[0].length === 0) return this.clear(options.empty);
    const shape = JSON.stringify([names, options.log, options.x, options.points]);
    if (this.plot && shape === this.shape) {
      this.plot.setData(columns);
      return;
    }
    this.clear(null);
    this.shape = shape;
    this.place.classList.remove("empty");
    this.plot = new uPlot(this.options(names, options), columns, this.place);
  }

  options(names, { log, x, points }) {
    const axis = {
      stroke: css("--soft"),
      grid: { stroke: css("--line"), width: 1 },
      ticks: { stroke: css("--line"), width: 1 },
    };
    const value = (_, ticks) => ticks.map((tick) => (tick === null ? "" : number(tick)));
    const line = (name, index) => ({
      label: name,
      stroke: colour(index),
      width: index === 0 ? 2 : 1.5,
      spanGaps: false,
      points: { show: Boolean(points), size: 5 },
    });
    return {
      width: Math.max(this.place.clientWidth, 120),
      height: 240,
      legend: { show: false },
      cursor: { y: false, drag: { x: true, y: false } },
      scales: { x: { time: false }, y: log ? { distr: 3 } : {} },
      axes: [
        {
          ...axis,
          values: (_, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? whole(tick) : "")),
          label: x,
          labelSize: 20,
          labelFont: "12px system-ui",
          size: 36,
        },
        { ...axis, values: value, size: labelsWidth },
      ],
      series: [{}, ...names.map(line)],
    };
  }

  clear(text) {
    if (this.plot) this.plot.destroy();
    this.plot = null;
    this.shape = "";
    this.place.classList.toggle("empty", text !== null);
    this.place.textContent = text || "";
  }

  resize() {
    if (this.plot && this.place.clientWidth > 0)
      this.plot.setSize({ width: this.place.clientWidth, height: 240 });
  }
}

function svg(name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

const COSINES = [
  ["cosine_within_coarse", "within coarse", 0],
  ["cosine_within_fine", "within fine", 1],
  ["cosine_between_views", "between views", 2],
];

// A mark of its own shape for each kind, so that colour is not all that distinguishes them.
function mark(kind, x, y) {
  const fill = colour(kind);
  if (kind === 0) return svg("circle", { cx: x, cy: y, r: 6, fill });
  if (kind === 1) return svg("rect", { x: x - 5.5, y: y - 5.5, width: 11, height: 11, fill });
  return svg("path", { d: `M${x} ${y - 7}L${x + 7} ${y + 6}L${x - 7} ${y + 6}Z`, fill });
}

// rows: [{name, cosine_within_coarse, ...}].
function showCosines(place, rows) {
  place.textContent = "";
  place.classList.toggle("empty", rows.length === 0);
  if (rows.length === 0) {
    place.textContent = "no complete stage yet";
    place.setAttribute("aria-label", "Collapse cosines: no complete stage yet");
    return;
  }
  const words = rows.map(
    (row) =>
      row.name + ": " + COSINES.map(([key, label]) => label + " " + number(row[key])).join(", "),
  );
  place.setAttribute("aria-label", "Collapse cosines, 1 is fully collapsed. " + words.join("; "));
  const width = Math.max(place.clientWidth, 260),
    left = Math.min(130, width * 0.32),
    right = width - 24,
    step = 30;
  const values = rows.flatMap((row) => COSINES.map(([key]) => row[key])).filter(Number.isFinite);
  const low = Math.min(0, ...values);
  const at = (value) => left + ((value - low) / (1 - low)) * (right - left);
  // The legend takes as many lines as it needs.
  let lines = 0,
    next = left;
  const legend = COSINES.map(([, label, kind]) => {
    const length = 27 + label.length * 6.8;
    if (next + length > width && next > left) [lines, next] = [lines + 1, left];
    next += length;
    return { label, kind, x: next - length, line: lines };
  });
  const top = rows.length * step + 46,
    height = top + lines * 20 + 12;
  const root = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}` });
  for (const tick of low < 0 ? [low, 0, 0.5] : [0, 0.5]) {
    root.append(
      svg("line", {
        x1: at(tick),
        x2: at(tick),
        y1: 8,
        y2: rows.length * step + 8,
        stroke: css("--line"),
      }),
    );
    root.append(
      svg(
        "text",
        { x: at(tick), y: rows.length * step + 24, "text-anchor": "middle", class: "soft" },
        number(tick),
      ),
    );
  }
  root.append(
    svg("line", {
      x1: at(1),
      x2: at(1),
      y1: 8,
      y2: rows.length * step + 8,
      stroke: css("--bad"),
      "stroke-width": 2,
    }),
  );
  root.append(
    svg(
      "text",
      { x: at(1), y: rows.length * step + 24, "text-anchor": "middle", class: "soft" },
      "1",
    ),
  );
  rows.forEach((row, index) => {
    const y = 8 + index * step + step / 2;
    root.append(
      svg(
        "text",
        { x: left - 10, y: y + 4, "text-anchor": "end" },
        row.name.length > 16 ? row.name.slice(0, 15) + "…" : row.name,
      ),
    );
    for (const [key, , kind] of COSINES)
      if (Number.isFinite(row[key])) root.append(mark(kind, at(row[key]), y));
  });
  for (const { label, kind, x, line } of legend) {
    root.append(
      mark(kind, x + 6, top + line * 20),
      svg("text", { x: x + 17, y: top + 4 + line * 20, class: "soft" }, label),
    );
  }
  place.append(root);
}
