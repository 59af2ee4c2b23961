"""From configs of TRL 1.16 to ours: `melior convert-config`."""
