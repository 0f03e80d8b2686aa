"""Sessions at each of their steps, made anew for every test."""

from __future__ import annotations

import pytest

from tests.secagg.session import Session, terms_for


@pytest.fixture
def session() -> Session:
    """Five hospitals, one of which may collude: t = 4, and four must survive."""
    return Session(terms_for(5, colluders=1))
