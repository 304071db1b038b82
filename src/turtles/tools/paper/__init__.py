"""`turtles bench paper`: the evaluation of the Turtles paper, run again and put beside the paper's figures.

`plan` says what runs, `runs` runs it, `journal` keeps it, `analysis` makes tables and bars of it, `figures`
and `page` show it; `published` holds what the paper printed. Not here: the guests, how a console is read.
"""
