"""Self-contained HTML pages: they open from the disk and load nothing from elsewhere.

`page.py` makes a page from a template, `markup.py` turns a docstring with formulas into
HTML, `source.py` shows code, and `pictures.py` draws. Every other file is one page. All
packages of the extra `report` are imported inside functions.
"""
