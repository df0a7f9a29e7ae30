"""How a prompt is learned: recipes, the loop, the run and its folder."""
