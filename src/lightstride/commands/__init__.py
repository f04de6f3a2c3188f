"""One file a command; the only modules that join whole rooms.  Nothing imports them but the cli.

prune, smash, evaluate, recover    their steps stand in pruning/, smashing/ and so on
export (export_head)
generate   bench   report   serve
cache, doctor   the copies of models that are kept; what is installed and measured
outputs    the output's checks and result.json, shared by all
"""
