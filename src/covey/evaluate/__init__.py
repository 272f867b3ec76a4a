"""How good a model is: held-out problems, unbiased estimators, intervals, tables of problems."""
