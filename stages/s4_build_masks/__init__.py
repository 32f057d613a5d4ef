"""Difference feedback: rollouts or preferences, repair model -> repairs, groups (eq. 5-8, 12-19)."""

from stages.s4_build_masks.stage import BuildMasks, BuildMasksFromPreferences

__all__ = ["BuildMasks", "BuildMasksFromPreferences"]
