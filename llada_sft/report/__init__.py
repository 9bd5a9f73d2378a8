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

The charts are drawn by uPlot (page/uplot, with its licence; release 1.6.32 as it was published):
51 kB for curves with zoom, cursors and gaps, without another library. ECharts and plotly bring
every other kind of chart and are larger than the whole page may be, or a good part of it; bokeh
needs more packages of Python.
"""
