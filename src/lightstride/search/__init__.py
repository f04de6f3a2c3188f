"""The one search over plans under a budget; it knows nothing of models.

space       sites with admissible choices and integer costs; plans; level indices
moves       steps from plan to plan that never leave the budget
guided      the default search: prior losses guide it, and it learns from every evaluation
surrogate   the model of the fitness that `guided` learns        evolution   the published search
race        few plans: all of them run                           result      plan, fitness, reports
evaluation_log   every evaluation on disk, so that a killed search resumes and asks nothing twice
"""
