"""The console script ``clim``, and what several commands of tools/ share."""
