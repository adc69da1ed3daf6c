"""Errors where devices are mixed, missing or full: a message that says what is wrong, and nothing half done."""

import pytest
import torch
def test_x(): pass
