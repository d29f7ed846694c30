"""HTTP: the gateway to stored bytes, and the viewer that reads them."""
