"""Words that the simulated population is made of: all invented, and meant to look it.

File names are as people write them: with slashes, emoji, line ends, right-to-left marks, or not at
all.
"""

from __future__ import annotations

__all__ = [
    "DISPLAY_NAMES",
    "FAMILY_NAMES",
    "FILE_STEMS",
    "GIVEN_NAMES",
    "NOTES",
    "ODD_FILE_TYPES",
]

GIVEN_NAMES = (
    "Testina",
    "Mockford",
    "Demona",
    "Fixturo",
    "Placeba",
    "Dummard",
    "Loremia",
    "Ipsumo",
    "Synthea",
    "Fauxley",
    "Specima",
    "Examplo",
    "Trialla",
    "Sandbox",
    "Stubbina",
    "Nullbert",
)

FAMILY_NAMES = (
    "Samplefield",
    "Testperson",
    "Mockwell",
    "Placeholder",
    "Nonesuch",
    "Exampleton",
    "Fictiva",
    "Demowitz",
    "Imaginario",
    "Prototype",
    "O'Fixture",
    "de la Prueba",
    "Beispiel-Muster",
)

DISPLAY_NAMES = (
    "Insurance card",
    "Insurance card (front)",
    "card / front",
    "CARD BACK!!",
    "💳 card",
    "Scan from front desk\n2 pages",
    "",
    "Versicherungskarte für {family}",
    "{given} {family} - card",
    "../../{family}",
    "driver's license & card",
    "carte d'assurance maladie à vérifier",
    "IMG_{number:04d}",
)

FILE_STEMS = (
    "IMG_{number:04d}",
    "scan{number:04d}",
    "insurance card",
    "front/back {number}",
    "card (1)",
    "Screenshot 2024-02-30 at 10.{number:04d} PM",
    "💳{number}",
    "{family}, {given}",
    "..\\..\\{family}",
    "CON",
    "line\nend",
    "\u202etxt.card",
    " leading and trailing ",
    "x" * 240,
)
"""Stems of file names; `{given}`, `{family}` and `{number}` are filled in."""

NOTES = (
    None,
    None,
    None,
    "Patient brought the new card",
    "Blurred; ask again at the next visit",
    "front desk: copay $20 \u2192 $40",
    'says "old plan", \tsee chart\nsecond line',
    "",
)

ODD_FILE_TYPES = ("", "jpg", "JPEG", "image/jpg", "application/octet-stream", "scan", "image/*")
"""What a few clients send in place of a media type."""
