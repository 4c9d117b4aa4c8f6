"""The embedded miniature world: pictures of coloured shapes, and everything that is made from them on the spot."""
