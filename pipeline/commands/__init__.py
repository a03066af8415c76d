"""The commands of `safelight`: one module each, and what several of them share."""
