"""What the papers claim, as far as a closed form or an enumeration can say."""
