"use strict";
// Everything here makes a page better that also works without it.

const place = document.querySelector('meta[name="session-lifecycle-root"]');
const root = place ? place.content : "";
const zone = place ? place.dataset.zone : "UTC";

// The server writes times in the visitor's zone. Only the browser knows the zone, so it tells it once, by a cookie.
function tellZone() {
  const name = "session_lifecycle_zone";
  const own = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const told = () => document.cookie.split("; ").includes(`${name}=${encodeURIComponent(own)}`);
  if (!own || told()) return;
  document.cookie = `${name}=${encodeURIComponent(own)}; path=${root || "/"}; max-age=31536000; samesite=lax`;
  const isAsked = new URLSearchParams(location.search).has("tz");
  if (own !== zone && !isAsked && told()) location.reload();
}

// A slash goes to the search field, but where text is typed.
function searchByKey() {
  document.addEventListener("keydown", (event) => {
    const types = event.target.closest("input, textarea, select, [contenteditable]");
    if (event.key !== "/" || types || event.ctrlKey || event.metaKey || event.altKey) return;
    const field = document.querySelector("[data-search]");
    event.preventDefault();
    if (field) field.focus();
    else location.assign(`${root}/sessions#search`);
  });
  if (location.hash === "#search") document.querySelector("[data-search]")?.focus();
}

// A form would put the fields that nobody filled into the address.
function keepAddressesShort() {
  for (const form of document.querySelectorAll('form[method="get"]')) {
    form.addEventListener("formdata", (event) => {
      for (const [name, value] of [...event.formData]) if (value === "") event.formData.delete(name);
    });
  }
}

const FORMS = {
  usd: (value) => new Intl.NumberFormat(undefined, { style: "currency", currency: "USD", notation: value < 10000 ? "standard" : "compact", minimumFractionDigits: value && value < 10 ? 2 : 0, maximumFractionDigits: value < 0.1 ? 4 : 2 }).format(value),
  count: (value) => new Intl.NumberFormat(undefined, { notation: "compact" }).format(value),
  share: (value) => new Intl.NumberFormat(undefined, { style: "percent" }).format(value),
  seconds: (value) => (value < 1 && value > 0 ? `${Math.round(value * 1000)} ms` : value < 600 ? `${Number(value.toFixed(1))} s` : `${Number((value / 60).toFixed(1))} m`),
};

// The times of an axis, as the table writes them: hours of a day or two, else days.
function dates(seconds) {
  const part = new Intl.DateTimeFormat("sv-SE", { timeZone: zone, year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit" });
  const texts = seconds.map((one) => part.format(new Date(one * 1000)));
  const isShort = seconds.length > 1 && seconds[1] - seconds[0] < 86400;
  return texts.map((text, at) => {
    const [day, clock] = text.split(" ");
    if (!isShort) return day.slice(5);
    return at === 0 || texts[at - 1].slice(0, 10) !== day ? `${clock}\n${day.slice(5)}` : clock;
  });
}

// A chart shows the table that is below it, cell by cell.
function draw(chart) {
  const plot = chart.querySelector(".plot");
  const rows = [...chart.querySelectorAll("tbody tr")];
  const times = rows.map((row) => Number(row.querySelector("[data-x]").dataset.x));
  const cells = rows.map((row) => [...row.querySelectorAll("[data-y]")]);
  const keys = [...chart.querySelectorAll(".key")];
  const format = FORMS[chart.dataset.chart];
  const values = keys.map((_, series) => cells.map((row) => (row[series].dataset.y === "" ? null : Number(row[series].dataset.y))));
  const colour = (element) => getComputedStyle(element).color;
  const quiet = colour(plot);
  const grid = document.createElement("span");
  grid.className = "plot-grid";
  plot.replaceChildren(grid);
  const line = colour(grid);
  const tip = document.createElement("div");
  tip.className = "plot-tip";
  tip.hidden = true;
  const font = "12px system-ui, sans-serif";
  const top = Math.max(0, ...values.flat().filter((value) => value !== null));
  const made = new uPlot({
    width: plot.clientWidth,
    height: plot.clientHeight,
    legend: { show: false },
    cursor: { y: false, points: { size: 7 }, drag: { x: false, y: false } },
    tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), zone),
    scales: { x: { time: true }, y: { range: [0, chart.dataset.chart === "share" ? 1 : top ? top * 1.08 : 1] } },
    axes: [
      { stroke: quiet, font, grid: { show: false }, ticks: { stroke: line, width: 1 }, space: 80, values: (_, splits) => dates(splits) },
      { stroke: quiet, font, size: 56, grid: { stroke: line, width: 1 }, ticks: { show: false }, values: (_, splits) => splits.map(format), space: 36 },
    ],
    series: [
      {},
      ...keys.map((key, number) => ({
        stroke: colour(key),
        width: 2,
        dash: key.classList.contains("key-before") ? [4, 4] : undefined,
        fill: number === 0 && keys.length < 3 ? colour(key).replace("rgb(", "rgba(").replace(")", ", 0.1)") : undefined,
        points: { show: times.length < 3 || values[number].filter((value) => value !== null).length < 3 },
        spanGaps: chart.dataset.chart === "share" || chart.dataset.chart === "seconds",
      })),
    ],
    hooks: {
      setCursor: [(self) => {
        const at = self.cursor.idx;
        tip.hidden = at === null || at === undefined || self.cursor.left < 0;
        if (tip.hidden) return;
        const names = keys.map((key) => key.parentElement.textContent.trim());
        tip.replaceChildren(...[rows[at].querySelector("[data-x]").textContent.trim(), ...names.map((name, series) => {
          const figure = cells[at][series].querySelector(".figure");
          return `${name}: ${figure.title || figure.textContent.trim()}`;
        })].map((text) => {
          const part = document.createElement("span");
          part.textContent = text;
          return part;
        }));
        const left = self.over.offsetLeft + self.cursor.left;
        tip.style.left = `${Math.max(0, Math.min(left + 12, plot.clientWidth - tip.offsetWidth))}px`;
        tip.style.top = "8px";
      }],
    },
  }, [times, ...values], plot);
  plot.append(tip);
  return made;
}

function drawCharts() {
  const charts = [...document.querySelectorAll("[data-chart]")];
  if (!charts.length || typeof uPlot === "undefined") return;
  const made = new Map();
  const drawAll = () => charts.forEach((chart) => {
    made.get(chart)?.destroy();
    made.set(chart, draw(chart));
  });
  drawAll();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    drawAll();
  });
}

// The page `live`: an event makes the lists load again, so that the server alone writes what they show.
function live() {
  const state = document.querySelector("[data-live]");
  if (!state) return;
  const tail = document.querySelector("[data-live-tail]");
  const path = state.dataset.events;
  const seconds = Number(state.dataset.seconds);
  let isLoading = false;
  let isWanted = false;

  async function load() {
    isWanted = true;
    if (isLoading || document.hidden) return;
    isLoading = true;
    while (isWanted) {
      isWanted = false;
      try {
        const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
        if (!answer.ok) throw new Error(String(answer.status));
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        const lists = document.querySelector("[data-live-lists]");
        const known = new Set([...lists.querySelectorAll("[data-session]")].map((row) => row.dataset.session));
        const loaded = page.querySelector("[data-live-lists]");
        for (const row of loaded.querySelectorAll("[data-session]")) if (!known.has(row.dataset.session)) row.classList.add("new");
        const focused = document.activeElement?.closest("[data-live-lists]") ? document.activeElement.getAttribute("href") : null;
        lists.replaceChildren(...loaded.childNodes);
        if (focused) [...lists.querySelectorAll("a")].find((link) => link.getAttribute("href") === focused)?.focus();
        say(page.querySelector("[data-live]").textContent, true);
      } catch {
        say("The lists could not be loaded. This page tries again.", false);
      }
      await new Promise((resolve) => setTimeout(resolve, 500));
    }
    isLoading = false;
  }

  function say(text, isOn) {
    state.textContent = text;
    state.classList.toggle("on", isOn);
    state.classList.toggle("off", !isOn);
  }

  function show(row) {
    if (!tail) return;
    document.querySelector("[data-live-quiet]")?.remove();
    const link = document.createElement("a");
    link.href = `${root}/session?${new URLSearchParams({ id: row.session_id, owner: row.user_id })}`;
    link.textContent = row.title || row.session_id;
    const status = document.createElement("span");
    status.textContent = row.effective_status;
    const what = document.createElement("span");
    what.textContent = [row.agent_name, row.last_model, FORMS.usd(row.cost_usd)].filter(Boolean).join(" · ");
    const when = document.createElement("span");
    when.textContent = new Date(row.last_activity_at).toLocaleTimeString(undefined, { timeZone: zone, hour12: false });
    const item = document.createElement("li");
    item.append(link, status, what, when);
    tail.prepend(item);
    while (tail.children.length > 50) tail.lastElementChild.remove();
  }

  if (path) {
    const source = new EventSource(path);
    source.addEventListener("session", (event) => {
      show(JSON.parse(event.data));
      load();
    });
    source.addEventListener("gone", load);
    source.addEventListener("look_again", load);
    source.addEventListener("open", () => say("Connected", true));
    source.addEventListener("error", () => say("The connection is lost. The lists are loaded again now and then.", false));
  }
  setInterval(load, 1000 * seconds);
  document.addEventListener("visibilitychange", () => document.hidden || load());
}

tellZone();
searchByKey();
keepAddressesShort();
drawCharts();
live();
