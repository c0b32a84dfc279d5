"""How the page looks, and the one script in it. Both stand in it and are named by their hash."""

STYLE = """
:root { color-scheme: light dark;
  --page: #f6f7f9; --card: #fff; --ink: #16202e; --soft: #5a6778; --line: #dfe4ea; --mono: #eef1f5;
  --ok: #2563c9; --other: #d9822b; --good: #12734a; --good-bg: #e5f5ec; --bad: #b3261e;
  --bad-bg: #fdeceb; --open-bg: #fff3e0; --open: #8a5200; }
@media (prefers-color-scheme: dark) { :root {
  --page: #0f141b; --card: #171e28; --ink: #e6ebf2; --soft: #98a5b8;
  --line: #2a3442; --mono: #1f2835;
  --ok: #6ea3f7; --other: #e9a55a; --good: #74d6a4; --good-bg: #12301f; --bad: #ff9a90;
  --bad-bg: #3a1714; --open-bg: #37270f; --open: #f0b866; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main, header, nav, footer { max-width: 1180px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 36px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -.01em; }
h2 { font-size: 20px; margin: 44px 0 4px; }
h3 { font-size: 15px; margin: 0; overflow-wrap: anywhere; }
p { margin: 6px 0; max-width: 80ch; } .soft, small { color: var(--soft); }
nav { position: sticky; top: 0; z-index: 2; background: var(--page); padding-top: 12px;
  padding-bottom: 10px; display: flex; gap: 18px; flex-wrap: wrap; }
a { color: var(--ok); text-decoration: none; } a:hover { text-decoration: underline; }
section { scroll-margin-top: 48px; }
code, pre, .mono { font: 12.5px/1.5 ui-monospace, "SF Mono", Menlo, "DejaVu Sans Mono", monospace; }
code { background: var(--mono); border-radius: 4px; padding: 1px 5px; overflow-wrap: anywhere; }
pre { background: var(--mono); border-radius: 8px; padding: 14px; margin: 10px 0; overflow: auto;
  max-height: 420px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 16px 18px; margin: 12px 0; }
.verdict { border-left: 6px solid var(--good); background: var(--good-bg); }
.verdict.bad { border-left-color: var(--bad); background: var(--bad-bg); }
.verdict strong { color: var(--good); font-size: 17px; } .verdict.bad strong { color: var(--bad); }
.verdict ul { margin: 6px 0; padding-left: 20px; }
.verdict code { background: transparent; padding: 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; }
.tiles .card { margin: 12px 0 0; } .tiles b { display: block; font-size: 25px; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 20px; }
@media (max-width: 860px) { .pair { grid-template-columns: 1fr; } nav { position: static; } }
figure { margin: 10px 0 0; } figcaption { color: var(--soft); font-size: 13px; }
.chart { width: 100%; height: auto; display: block; }
.chart .ok { fill: var(--ok); } .chart .other { fill: var(--other); }
.chart .grid { stroke: var(--line); } .chart .tick { fill: var(--soft); font-size: 10.5px; }
.chart .end { text-anchor: end; } .chart .mid { text-anchor: middle; }
.key { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin: 0 5px 0 14px; }
.key:first-child { margin-left: 0; }
.key.ok { background: var(--ok); } .key.other { background: var(--other); }
.scroll { overflow: auto; border: 1px solid var(--line); border-radius: 12px;
  background: var(--card); margin: 12px 0; } .scroll.tall { max-height: 640px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th { text-align: left; color: var(--soft); font-weight: 600; white-space: nowrap; position: sticky;
  top: 0; background: var(--card); box-shadow: inset 0 -1px var(--line); }
th, td { padding: 8px 12px; vertical-align: top; } tr + tr td { border-top: 1px solid var(--line); }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.whole { white-space: nowrap; }
td.time { white-space: nowrap; font-variant-numeric: tabular-nums; }
td.id { overflow-wrap: anywhere; min-width: 200px; } td.wide { min-width: 240px; }
td.name { overflow-wrap: anywhere; min-width: 110px; }
td.dest { overflow-wrap: anywhere; min-width: 180px; } td.mono { min-width: 230px; }
.badge { border-radius: 99px; padding: 1px 9px; font-size: 12.5px; white-space: nowrap; }
p .badge { white-space: normal; }
.badge.ok { background: var(--good-bg); color: var(--good); }
.badge.failed { background: var(--bad-bg); color: var(--bad); }
.badge.open { background: var(--open-bg); color: var(--open); }
details { border-top: 1px solid var(--line); padding: 10px 0; } details:first-of-type { border: 0; }
summary { cursor: pointer; } summary h3 { display: inline; }
.filters { display: flex; gap: 10px; flex-wrap: wrap; align-items: center; margin-top: 12px; }
.filters input, .filters select { font: inherit; font-size: 14px; color: inherit; padding: 6px 10px;
  background: var(--card); border: 1px solid var(--line); border-radius: 8px; max-width: 300px; }
.filters input { flex: 1 1 260px; max-width: none; }
footer { padding-top: 28px; padding-bottom: 48px; color: var(--soft); font-size: 13px; }
@media print { nav, .filters { display: none; } .scroll.tall, pre { max-height: none; } }
"""

SCRIPT = """
"use strict";
(() => {
  const text = document.getElementById("find");
  const choices = [...document.querySelectorAll("select[data-column]")];
  const rows = [...document.querySelectorAll("#sends tbody tr")];
  const shown = document.getElementById("shown");
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const filter = () => {
    const words = text.value.toLowerCase().split(" ").filter(Boolean);
    let count = 0;
    rows.forEach((row, n) => {
      const fits = words.every((word) => texts[n].includes(word)) &&
        choices.every((c) => !c.value || row.cells[c.dataset.column].dataset.key === c.value);
      row.hidden = !fits;
      count += fits ? 1 : 0;
    });
    shown.textContent = count + " of " + rows.length + " shown";
  };
  text.addEventListener("input", filter);
  choices.forEach((choice) => choice.addEventListener("change", filter));
  document.querySelector(".filters").hidden = false;
  filter();
})();
"""
