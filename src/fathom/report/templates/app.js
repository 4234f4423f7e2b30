"use strict";
/* The page's theme, its charts, and what text and embedded data need before they can be shown. */

const root = document.documentElement;

function embedded(id) {
  return JSON.parse(document.getElementById(id).textContent);
}

/* Base64 of gzip where the data is large; decoded without a request, since the page may make none. */
async function unpacked(id) {
  const holder = document.getElementById(id);
  if (holder.dataset.encoding === "json") return JSON.parse(holder.textContent);
  const bytes = Uint8Array.from(atob(holder.textContent), (char) => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

const hidden = new RegExp(
  "[" + embedded("hidden-ranges").map(([low, high]) => `\\u{${low.toString(16)}}-\\u{${high.toString(16)}}`).join("") + "]",
  "gu",
);

/* What would act or hide is shown as its code point, as in the terminal. */
function visible(text) {
  return text.replace(hidden, (char) => "⟦U+" + char.codePointAt(0).toString(16).toUpperCase().padStart(4, "0") + "⟧");
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

/* Theme: the system's unless the reader chose. Storage may be denied to local files. */
const themeButton = document.getElementById("theme");
const systemDark = window.matchMedia("(prefers-color-scheme: dark)");

function storedTheme() {
  try { return localStorage.getItem("fathom-theme"); } catch { return null; }
}

function applyTheme(chosen) {
  const theme = chosen || (systemDark.matches ? "dark" : "light");
  root.dataset.theme = theme;
  themeButton.textContent = theme === "dark" ? "Light" : "Dark";
}

themeButton.hidden = false;
themeButton.addEventListener("click", () => {
  const theme = root.dataset.theme === "dark" ? "light" : "dark";
  try { localStorage.setItem("fathom-theme", theme); } catch { /* the choice lasts as long as the page */ }
  applyTheme(theme);
});
systemDark.addEventListener("change", () => applyTheme(storedTheme()));
applyTheme(storedTheme());

/* A tooltip that writes text, never markup. */
const tip = element("div", "tip");
tip.hidden = true;
document.body.append(tip);

function showTip(handler, event, item, value) {
  if (value === null || value === undefined || value === "") {
    tip.hidden = true;
    return;
  }
  const rows = typeof value === "object" ? Object.entries(value) : [["", String(value)]];
  tip.replaceChildren(...rows.flatMap(([name, shown]) => [element("span", "", name), element("b", "", String(shown))]));
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = Math.min(event.clientX + 14, window.innerWidth - box.width - 8);
  const above = event.clientY + 18 + box.height > window.innerHeight;
  tip.style.left = Math.max(8, left) + "px";
  tip.style.top = (above ? event.clientY - box.height - 12 : event.clientY + 18) + "px";
}

/* `ast` makes Vega interpret its expressions: the page's policy forbids evaluating strings as code. */
async function drawCharts() {
  const specs = embedded("specs");
  const options = { ast: true, actions: false, renderer: "svg", tooltip: showTip, defaultStyle: false };
  for (const figure of document.querySelectorAll("[data-chart]")) {
    const spec = specs[figure.dataset.chart];
    figure.hidden = !spec;
    if (!spec) continue;
    if (figure.clientWidth < 560) spec.config.legend.columns = 1; // names of models are long
    await vegaEmbed(figure, spec, options);
  }
}

window.addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details.table:not([open])")) {
    details.open = true;
    details.dataset.printed = "";
  }
});
window.addEventListener("afterprint", () => {
  for (const details of document.querySelectorAll("details[data-printed]")) {
    details.open = false;
    delete details.dataset.printed;
  }
});

drawCharts().then(() => { root.dataset.charts = "ready"; });
