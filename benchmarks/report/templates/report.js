"use strict";
(function () {
  const SHOWN = 100; // episodes listed at first, and added by each "Show more"
  const page = JSON.parse(document.getElementById("page-data").textContent);
  const { queries, detector, start, agents } = page;
  const names = Object.keys(agents);
  const find = (id) => document.getElementById(id);
  const search = find("search"), agent = find("agent"), sort = find("sort"), more = find("more");
  const list = find("episodes"), walker = find("walker");
  let order = [], shown = SHOWN, open = -1, at = 0; // at: the step of the walker that is marked

  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  // tIoU after refinement: mean over the seeds of each agent.
  const after = Object.fromEntries(names.map((name) => {
    const seeds = Object.values(agents[name]);
    return [name, detector.ious.map((_, i) => mean(seeds.map((seed) => seed.ious[i])))];
  }));

  // Every seed of every agent: those whose steps can be followed.
  const walkers = names.flatMap((name, number) => Object.entries(agents[name]).map(([seed, answer], _, seeds) => ({
    name, answer, colour: "s" + (number < 6 ? number + 1 : (number % 6) + 1),
    label: seeds.length > 1 ? name + ", seed " + seed : name,
  })));

  function element(tag, attributes, text) {
    const svg = ["svg", "rect", "line", "polyline", "text", "title"].includes(tag);
    const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function signed(value) {
    const size = Math.abs(value).toFixed(2);
    return (size === "0.00" ? "±" : value > 0 ? "+" : "−") + size;
  }

  function tiou(i) { return names.length ? after[agent.value][i] : detector.ious[i]; }

  function choose() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const gain = (i) => tiou(i) - detector.ious[i];
    const keys = {
      gain, loss: (i) => -gain(i), after: tiou, before: (i) => detector.ious[i], order: (i) => -i,
    };
    const key = keys[sort.value];
    order = queries.query.map((_, i) => i).filter((i) => {
      const text = (queries.query[i] + " " + queries.vid[i] + " " + queries.qid[i]).toLowerCase();
      return words.every((word) => text.includes(word));
    });
    order.sort((a, b) => key(b) - key(a) || a - b);
    shown = SHOWN;
    // An episode that the search leaves out is not shown any longer: the first that it finds is, or none.
    if (open >= 0 && !order.includes(open)) {
      if (order.length) show(order[0]);
      else open = -1;
    }
    else if (open < 0 && order.length && find("episode").hidden) show(order[0]);
    find("episode").hidden = order.length === 0;
    fill();
  }

  function fill() {
    list.replaceChildren(...order.slice(0, shown).map((i) => {
      const gain = tiou(i) - detector.ious[i];
      const button = element("button", { type: "button", "data-row": i });
      const kind = gain > 1e-6 ? "up" : gain < -1e-6 ? "down" : "";
      const mark = { up: "▲ ", down: "▼ " }[kind] || "";
      button.append(element("span", { class: "gain " + kind }, mark + signed(gain)));
      button.append(element("span", {}, queries.query[i]));
      const item = element("li");
      item.append(button);
      return item;
    }));
    highlight();
    more.hidden = order.length <= shown;
    find("count").textContent = order.length + (order.length === 1 ? " episode" : " episodes");
  }

  // Marks the open episode. It alone is a stop of the Tab key, or the first of the list: arrow keys do the rest.
  function highlight() {
    const buttons = [...list.querySelectorAll("button")];
    const current = buttons.find((button) => Number(button.dataset.row) === open);
    for (const button of buttons) {
      button.setAttribute("aria-current", String(button === current));
      button.tabIndex = button === (current || buttons[0]) ? 0 : -1;
    }
  }

  function seconds(span) { return span[0].toFixed(1) + "–" + span[1].toFixed(1) + " s"; }

  function move(before, after) {
    const shifts = ["start", "end"].map((boundary, side) => [boundary, after[side] - before[side]])
      .filter(([, shift]) => Math.abs(shift) >= 0.05)
      .map(([boundary, shift]) => boundary + (shift > 0 ? " +" : " −") + Math.abs(shift).toFixed(1) + " s");
    return shifts.join(", ") || "nothing moves";
  }

  // Where an episode was, from its start on: what was done, the moment after it, and its tIoU.
  function walk({ answer }, i) {
    const places = [{ did: "start", span: start.spans[i], tiou: start.ious[i] }];
    if (!answer.steps) {
      const how = answer.is_head ? "answer of the trained head: " : "all steps (this run recorded no single ones): ";
      const did = how + move(start.spans[i], answer.spans[i]);
      return [...places, { did, span: answer.spans[i], tiou: answer.ious[i] }];
    }
    for (const [from, to, tiou, proposal] of answer.steps[i]) {
      const before = places[places.length - 1];
      if (from === undefined) places.push({ ...before, did: "stop" });
      else {
        const did = proposal ? "switch to proposal " + proposal : move(before.span, [from, to]);
        places.push({ did, span: [from, to], tiou });
      }
    }
    return places;
  }

  function rowsOf(i) {
    const tiou = (value) => "tIoU " + value.toFixed(2);
    return [
      { name: "ground truth", spans: queries.moments[i], kind: "truth", walk: [], note: "" },
      { name: "detector", spans: [detector.spans[i]], kind: "fill s0", walk: [], note: tiou(detector.ious[i]) },
      ...walkers.map((one) => ({
        of: one, name: one.label, spans: [one.answer.spans[i]], kind: "fill " + one.colour,
        walk: walk(one, i).filter((place) => place.did !== "stop"),
        note: tiou(one.answer.ious[i]) + " (" + signed(one.answer.ious[i] - detector.ious[i]) + ")",
      })),
    ];
  }

  // The episode from left to right, a row for each answer. On narrow screens texts stand over the bars.
  function timeline(i, width) {
    const rows = rowsOf(i), duration = queries.duration[i], narrow = width < 560;
    const left = narrow ? 0 : 190, right = narrow ? width : width - 140, top = 8;
    let bottom = top;
    for (const row of rows) {
      row.top = bottom;
      row.y = bottom + (narrow ? 34 : 0);
      row.bar = row.y + 9 * Math.max(row.walk.length, 1);
      bottom = row.bar + 27;
    }
    const said = rows.map((row) => row.name + " " + row.spans.map(seconds).join(" and ") + " " + row.note);
    const height = bottom + (narrow ? 44 : 34);
    const svg = element("svg", {
      viewBox: "0 0 " + width + " " + height, role: "img", "aria-label": "Timeline: " + said.join("; "),
    });
    const x = (time) => left + Math.min(Math.max(time / duration, 0), 1) * (right - left);
    const add = (tag, attributes, text) => svg.appendChild(element(tag, attributes, text));
    const bar = (span, place) => add("rect", {
      x: x(span[0]), width: Math.max(x(span[1]) - x(span[0]), 1.5), ...place,
    });
    for (const moment of queries.moments[i]) bar(moment, { y: top, height: bottom - top, class: "truth-pale" });
    // The step that the reader is at: its boundaries through all rows, and an outline. Stopping moves nothing.
    const now = rows.find((row) => row.of && row.of === walkers[walker.selectedIndex]);
    const shown = now ? Math.min(at, now.walk.length - 1) : 0;
    for (const time of now ? now.walk[shown].span : []) {
      add("line", { x1: x(time), x2: x(time), y1: top, y2: bottom, class: "now" });
    }
    for (const row of rows) {
      const longest = narrow ? 40 : 27;
      add("text", { x: 0, y: narrow ? row.top + 14 : row.bar + 13, class: "name" },
        row.name.length > longest ? row.name.slice(0, longest - 1) + "…" : row.name)
        .append(element("title", {}, row.name));
      const times = row.spans.length > 1 ? row.spans.length + " moments" : seconds(row.spans[0]);
      if (narrow) add("text", { x: 0, y: row.top + 30 }, times + (row.note ? " · " + row.note : ""));
      else {
        add("text", { x: right + 8, y: row.bar + (row.note ? 6 : 13) }, times);
        if (row.note) add("text", { x: right + 8, y: row.bar + 21 }, row.note);
      }
      const earlier = row.walk.slice(0, -1);
      for (const side of earlier.length ? [0, 1] : []) {
        const points = row.walk.map(({ span }, k) => x(span[side]) + "," + (placeOf(row, k).y + 2));
        add("polyline", { points: points.join(" "), class: "way" });
      }
      earlier.forEach(({ span }, k) => {
        bar(span, { ...placeOf(row, k), class: (k ? row.kind : "fill s0") + " earlier" });
      });
      for (const span of row.spans) bar(span, { y: row.bar, height: 18, class: row.kind });
    }
    add("line", { x1: left, x2: right, y1: bottom, y2: bottom, class: "grid" });
    const most = (right - left) / 45;
    const unit = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find((unit) => duration / unit <= most) || 2000;
    for (let time = 0; time <= duration; time += unit) {
      add("line", { x1: x(time), x2: x(time), y1: bottom, y2: bottom + 5, class: "grid" });
      const anchor = narrow && time === 0 ? "start" : x(time) > width - 12 ? "end" : "middle";
      add("text", { x: x(time), y: bottom + 20, "text-anchor": anchor }, String(time));
    }
    if (narrow) add("text", { x: right, y: bottom + 38, "text-anchor": "end" }, "seconds");
    else add("text", { x: right + 8, y: bottom + 20 }, "seconds");
    if (now) bar(now.walk[shown].span, { ...placeOf(now, shown), class: "now" });
    return svg;
  }

  // Where the bar of a step stands: thin ones over the thick one of the answer.
  function placeOf(row, k) {
    return k === row.walk.length - 1 ? { y: row.bar, height: 18 } : { y: row.y + 4 + 9 * k, height: 5 };
  }

  function fillSteps() {
    const one = walkers[walker.selectedIndex], places = walk(one, open);
    at = Math.min(at, places.length - 1);
    find("steps-of").textContent = "Steps of " + one.label;
    find("steps").replaceChildren(...places.map((place, k) => {
      const row = element("tr", k === at ? { "aria-current": "step" } : {});
      row.append(
        element("th", { scope: "row" }, String(k)), element("td", {}, place.did),
        element("td", {}, seconds(place.span)), element("td", {}, place.tiou.toFixed(2)),
        element("td", {}, k ? signed(place.tiou - places[k - 1].tiou) : ""),
      );
      return row;
    }));
    const place = places[at];
    find("step").textContent = "Step " + at + " of " + (places.length - 1) + ": " + place.did + "; "
      + seconds(place.span) + ", tIoU " + place.tiou.toFixed(2);
    find("back").setAttribute("aria-disabled", String(at === 0));
    find("on").setAttribute("aria-disabled", String(at === places.length - 1));
  }

  function draw() {
    if (walkers.length) fillSteps();
    const place = find("timeline");
    place.replaceChildren(timeline(open, Math.max(place.clientWidth, 280)));
  }

  function step(by) {
    if (!walkers.length || open < 0) return;
    at = Math.min(Math.max(at + by, 0), walk(walkers[walker.selectedIndex], open).length - 1);
    draw();
  }

  function show(i) {
    open = i;
    at = 0;
    highlight();
    find("query").textContent = "“" + queries.query[i] + "”";
    find("facts").textContent = "video " + queries.vid[i] + ", query " + queries.qid[i] + ", "
      + queries.duration[i].toFixed(1) + " s";
    draw();
  }

  names.forEach((name) => agent.append(element("option", { value: name }, name)));
  walkers.forEach((one) => walker.append(element("option", {}, one.label)));
  agent.disabled = names.length === 0;
  for (const part of document.querySelectorAll(".walk, .walk-table")) part.hidden = walkers.length === 0;
  find("controls").addEventListener("submit", (event) => event.preventDefault());
  search.addEventListener("input", choose);
  agent.addEventListener("change", () => {
    walker.selectedIndex = walkers.findIndex((one) => one.name === agent.value);
    choose();
    if (open >= 0) show(open);
  });
  walker.addEventListener("change", () => { at = 0; draw(); });
  find("back").addEventListener("click", () => step(-1));
  find("on").addEventListener("click", () => step(1));
  sort.addEventListener("change", choose);
  more.addEventListener("click", () => { shown += SHOWN; fill(); });
  list.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) show(Number(button.dataset.row));
  });
  list.addEventListener("keydown", (event) => {
    const buttons = [...list.querySelectorAll("button")];
    const at = buttons.indexOf(document.activeElement);
    const next = buttons[{ ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: buttons.length - 1 }[event.key]];
    if (next) { event.preventDefault(); next.focus(); show(Number(next.dataset.row)); }
  });
  find("episode-browser").addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (by && event.target !== walker) { event.preventDefault(); step(by); }
  });
  window.addEventListener("resize", () => { if (open >= 0) draw(); });
  choose();
  if (order.length) show(order[0]);
})();
