"""A kind of data for Tauon from outside: sequences of events with the time between them. Its source, its model and its task come along."""
