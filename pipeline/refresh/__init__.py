"""The nightly refresh: find, train, calibrate, gate, label, check, publish in one commit."""
