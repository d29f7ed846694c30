"""Networks, the packages they are kept in, and predicting with them. torch lives only here and in training."""
