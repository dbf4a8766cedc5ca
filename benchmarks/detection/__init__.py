"""How well the scores of a check tell triggered inputs from clean ones, on the zoo's networks."""
