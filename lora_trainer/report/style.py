"""The report's style sheet: light, and dark where the browser prefers it."""

STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --text: #1f2430; --quiet: #5b6472;
  --line: #d9dee6; --card: #f5f7fa; --first: #2563eb; --second: #d97706; --good: #15803d; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171d; --text: #e6e9ef;
  --quiet: #a2acba;
  --line: #333a46; --card: #1d222b; --first: #7aa7ff; --second: #f5b04d; --good: #5fd38a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Noto Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 20px 64px; overflow-wrap: anywhere; }
h1 { font-size: 28px; margin: 0; } h2 { font-size: 19px; margin: 40px 0 12px; }
h3 { font-size: 15px; margin: 20px 0 8px; font-weight: 600; } p { margin: 6px 0; }
.summary, .advice, figcaption { color: var(--quiet); }
.best { font-size: 20px; font-weight: 600; border-left: 4px solid var(--good);
  padding-left: 12px; }
.finding { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  border-left: 4px solid var(--second); padding: 8px 14px; margin: 10px 0; }
code { font: 13px/1.4 ui-monospace, "Cascadia Mono", Menlo, monospace; background: var(--card);
  border-radius: 4px; padding: 1px 5px; white-space: pre-wrap; }
.charts { display: grid; gap: 20px 28px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); }
.chart { margin: 0; } .chart svg { width: 100%; max-width: 860px; height: auto;
  display: block; }
.chart text { fill: var(--quiet); font-size: 12px; } .middle { text-anchor: middle; }
  .end { text-anchor: end; }
.grid { stroke: var(--line); } line.axis { stroke: var(--quiet); }
line.mark { stroke: var(--good); stroke-width: 2; stroke-dasharray: 5 4; }
.line { fill: none; stroke-width: 2; } .line.first { stroke: var(--first); }
.line.second { stroke: var(--second); } .line.faint { stroke: var(--quiet); opacity: 0.35;
  stroke-width: 1; }
.dots.first { fill: var(--first); } .dots.second { fill: var(--second); }
.key { margin-right: 18px; } .key::before { content: ""; display: inline-block; width: 18px;
  height: 3px;
  margin-right: 6px; vertical-align: middle; background: var(--quiet); }
.key.first::before { background: var(--first); }
  .key.second::before { background: var(--second); }
.wide { overflow-x: auto; } table { border-collapse: collapse; }
td, th { text-align: left; vertical-align: top; padding: 4px 12px 4px 0;
  border-bottom: 1px solid var(--line); }
td { white-space: pre-line; } .numbers td, .numbers th { text-align: right; }
.numbers { font-variant-numeric: tabular-nums; }
table.grid td, table.grid th { padding: 4px; border: 0; } table.grid img { width: 192px;
  max-width: none; display: block; border-radius: 6px; }
tr.chosen img { outline: 3px solid var(--good); } tr.chosen th { color: var(--good); }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(168px, 1fr)); gap: 16px; }
.sheet figure { margin: 0; } .sheet img { width: 100%; max-height: 200px; object-fit: contain;
  object-position: left top; border-radius: 6px; }
.sheet figcaption { font-size: 13px; } .sheet strong { color: var(--text); font-weight: 600; }
.sheet p { margin: 2px 0; } .gone { color: var(--quiet); font-style: italic; }
summary { cursor: pointer; margin: 10px 0; color: var(--quiet); }
@media print { .wide { overflow: visible; } }
"""
