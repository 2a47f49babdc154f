"""Raw calibration by hand: ``apflow calibration`` and its report (DMTN-092 section 2.3)."""
