"""Independent clients and targets for the tests: nothing here uses the relay's own code."""
