"""Does it fit, how long does it take, what does it cost: arithmetic on configs, without weights and without torch."""
