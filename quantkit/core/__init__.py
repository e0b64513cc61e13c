"""Value types, units and errors: what every other floor stands on."""
