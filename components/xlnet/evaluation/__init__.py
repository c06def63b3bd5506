"""How good a model is, against the truth and against the champion."""
