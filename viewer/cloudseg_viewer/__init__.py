"""Neuroglancer links and the page that shows them."""
