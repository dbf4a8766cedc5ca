"""From a backdoored model to the next version without the backdoor, judged without knowing the trigger."""
