"""`llada-sft report`: one HTML page of a run, or of several, from their own files.

    options.py   its arguments; command.py: writes the page, or serves it
    serve.py     a server for this machine only, during a run
    html.py      the page: its parts, and the policy that lets nothing else run
    gather.py    run directories -> what the page shows
    curves.py    metrics.csv; thinned.py: fewer points of long curves
    bad_rows.py  quarantine/
    timeline.py  journal.jsonl
    answers.py   logs/answers.jsonl
    limits.py    how much of a run the page holds; not_read.py: what it says of damaged lines

In the folder page, the page itself: HTML, CSS and JavaScript as they are read, without a build.

The charts are drawn by uPlot (page/uplot, with its licence; release 1.6.32 as it was
published): 51 KB for curves with zoom, cursors and gaps, where plotly has 4 MB and ECharts 1 MB. It
draws 100,000 points at once, needs no other library, and sets no HTML from strings.
"""
