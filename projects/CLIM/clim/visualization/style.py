"""The style sheet of reports: light and dark, wide and narrow, no font or picture from elsewhere."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #fbfaf8; --card: #ffffff; --ink-1: #1d2026; --ink-2: #5d6470; --line: #e3e1dc; --code: #f3f1ec;
  --run0: #7c8490; --run1: #2f6fde; --run2: #e0661a; --run3: #1d9a6c; --run4: #a445c9; --run5: #b08900;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14161a; --card: #1c1f25; --ink-1: #e9eaee; --ink-2: #a2a9b5; --line: #31353e; --code: #262a32;
    --run0: #9aa3b0; --run1: #6ba1ff; --run2: #ff9550; --run3: #4fcf9f; --run4: #d088ee; --run5: #dcb73c;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 1120px; padding: 40px 24px 64px; background: var(--page); color: var(--ink-1);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -.02em; margin: 0 0 12px; }
h2 { font-size: 1.2rem; margin: 0 0 12px; }
h3 { font-size: .95rem; font-weight: 600; color: var(--ink-2); margin: 20px 0 8px; }
header p { max-width: 78ch; margin: 0 0 10px; }
header p:first-of-type { font-size: 1.15rem; }
p { max-width: 84ch; margin: 0 0 12px; }
section {
  background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 22px 24px; margin-top: 22px;
}
a { color: var(--run1); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 12px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child { text-align: left; padding-left: 0; }
thead th { color: var(--ink-2); font-size: .85rem; font-weight: 600; }
tbody th { font-weight: 500; }
tbody tr:last-child > * { border-bottom: 0; }
.bar {
  display: inline-block; width: 150px; padding: 1px 6px; text-align: right;
  position: relative; isolation: isolate;
}
.bar::before {
  content: ""; position: absolute; inset: 0 auto 0 0; width: calc(var(--width) * .66); border-radius: 3px;
  background: var(--ink); opacity: .28; z-index: -1;
}
.swatch { display: inline-block; width: .75em; height: .75em; border-radius: 3px; margin-right: .5em; }
.legend span { margin-right: 22px; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 18px; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(230px, 1fr)); gap: 14px; }
figure { margin: 0; }
figure img { display: block; width: 100%; height: auto; border-radius: 8px; }
figcaption { color: var(--ink-2); font-size: .85rem; margin-top: 5px; }
.chart { display: block; width: 100%; height: auto; }
.chart text { fill: var(--ink-2); font-size: 11px; }
.chart .grid { stroke: var(--line); }
pre { background: var(--code); border-radius: 8px; padding: 11px 14px; overflow-x: auto; margin: 0 0 14px; }
code { font: .88rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
"""
