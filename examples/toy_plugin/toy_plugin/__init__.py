"""Parts for Tauon from outside: a model, an optimizer, a data source."""
