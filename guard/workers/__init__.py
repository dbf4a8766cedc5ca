"""Several processes that serve as one: each is a whole guard; a parent keeps them and speaks for them."""
