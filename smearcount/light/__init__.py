"""What is put right in a photograph before cells are sought: the end of the view, its light and tint, a reticle."""
