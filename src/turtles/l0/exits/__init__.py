"""Exit handlers, one file a concern; `registry` says which runs for which reason at which level."""
