"""Commands for maintainers: releases of weights, and everything that is generated from records."""
