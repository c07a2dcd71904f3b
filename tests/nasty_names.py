"""Names and ids that have broken other people's programs."""

DIGITS = "1" * 10_240
LONE_SURROGATE = "\ud800"
"""Not text that can be stored: the one name that is refused."""

NASTY = (
    "../../etc/passwd",
    "/etc/passwd",
    "C:\\CON",
    "a\x00b",
    "a\nb",
    "a\r\nb",
    "x" * 10_240,
    DIGITS,
    "\N{GRINNING FACE}",
    "\N{FAMILY}\N{ZERO WIDTH JOINER}\N{GIRL}",
    "\N{LATIN SMALL LETTER E WITH ACUTE}",
    "e\N{COMBINING ACUTE ACCENT}",
    "<script>alert(1)</script>",
    "=1+1",
    "-2+3",
    "@SUM(A1)",
    "\x1b[2J",
    "\x07\x08\x7f",
    "\N{RIGHT-TO-LEFT OVERRIDE}txt.exe",
    "\N{LINE SEPARATOR}\N{PARAGRAPH SEPARATOR}",
    "\N{BYTE ORDER MARK}",
    "\uffff",
    "",
    " ",
    ".",
    "..",
    "0",
    "None",
    "NaN",
    "'; DROP TABLE rounds; --",
    "%s%n{0}",
    "$(id)",
)
"""Any of them may be a client's name; no two are equal."""
