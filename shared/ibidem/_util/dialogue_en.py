"""Word lists of `ibidem.prompts.standing_alone`. English; another language is another file."""

from __future__ import annotations

# Words that stand for something said before, wherever they occur. What is harmless is taken out before
# (`HARMLESS`): "is it possible to", "this year".
REFERRING = frozenset(
    (
        "it its itself they them their theirs themselves he him his himself she her hers herself this that "
        "these those such same former latter both neither either other others another instead again too "
        "also otherwise else likewise similarly still yet anymore already above below previous previously "
        "earlier before aforementioned mentioned said there one ones none some any several most more less "
        "fewer further rest then so next last first second third actually meant mean sorry correction "
        "rather elsewhere respectively ditto vice versa yes no yeah yep nope nah sure exactly correct right "
        "wrong"
    ).split()
)
# Pieces in which these words refer to nothing said before.
HARMLESS = (
    r"\b(?:is|was|would|will|does|can|could|should|is n't|isn't) it (?:\w+ )?(?:possible|safe|ok|"
    r"okay|legal|illegal|allowed|necessary|mandatory|better|best|bad|good|normal|free|worth|hard|"
    r"easy|difficult|required|take|cost|mean|matter)\b",
    r"\bhow (?:long|much|many \w+) (?:does|did|will|would|do) it (?:take|cost) (?:\w+ ){0,3}?to\b",
    r"\b(?:is|are|was|were|will) there\b(?! (?:another|any other|more|something else|anything"
    r" else)\b)",
    r"\bwhat time is it\b",
    r"\bthis (?:year|month|week|weekend|morning|afternoon|evening|summer|winter|spring|autumn|fall"
    r"|quarter|website|site|app|store|shop|company|chat|page)\b",
    r"\b(?:the )?(?:next|last|first|second|third|previous) (?:\w+ )?(?:day|week|month|year|time|"
    r"name|names|aid|class|world|half|quarter|person|party|language|hand|payment|order|day|step|"
    r"commit)s?\b",
    r"\b(?:so|such) that\b|\bso (?:many|much|far|long|called)\b|\bsuch as\b|\bin order that\b",
    r"\b(?:more|less|fewer|other|better|cheaper|faster|later|earlier|older|younger|larger|bigger|"
    r"smaller|longer|shorter|higher|lower|stronger|rather|sooner) than\b",
    r"\bno (?:longer|one)\b|\bone (?:day|week|month|year|hour|minute|time|account|person|of)\b",
    r"\b(?:some|any|most|several|both) (?=[a-z]{3})(?!of\b|more\b|other\b|that\b|this\b)",
    r"\b(?:every|each|any|some|no) one\b|\bone-\w+|\b\w+-in-one\b",
    r"\ball in one\b|\bfirst name\b|\blast name\b|\bsecond ?hand\b|\bsame[- ]day\b|\bnext[- ]day\b",
    r"\bbefore (?=\w+ing\b|i |we |you |the |a |an |my |our )|\bbefore \d",
    r"\bright (?:to|of|way|now|side)\b|\bmake sure\b|\bright after\b",
    r"\bnot only\b|\btoo (?:many|much|long|late|early|big|small|old|young|hot|cold|large|high|low|"
    r"short|tight|loose|heavy)\b",
    r"\bwhat (?:does|do|did) (?:(?!\b(?:it|its|this|that|these|those|they|them|their|he|she|ones?)\b)"
    r"[\w' -]){1,80} mean\b|\bmean (?:by|to)\b",
    r"\bknow that\b|\btrue that\b|\bsay that\b|\bensure that\b",
    r"\bno (?=[a-z]{3})",
)
# Comparatives: without "than" they compare with what was said.
COMPARATIVES = frozenset(
    (
        "better worse cheaper dearer faster quicker slower bigger smaller larger longer shorter higher "
        "lower older younger newer earlier later sooner easier harder simpler stronger weaker lighter "
        "heavier safer warmer colder cooler hotter brighter darker louder quieter thicker thinner wider "
        "narrower deeper nearer closer further farther fewer less more greater finer"
    ).split()
)
# How a message begins that goes on with what was said.
CONTINUING = (
    r"(?:and|but|or|nor|then|plus|also|so|because|cause|unless|except|though|although|besides|"
    r"otherwise|instead|meanwhile|however|what about|how about|what if not|why not|why so|how so|"
    r"what else|who else|where else|how else|anything else|something else|any other|no|not|nope|"
    r"yes|yeah|yep|sure|exactly|correct|right|wrong|actually|rather|i meant?|i mean|sorry,? i|in"
    r" that case|in this case|if so|if not|same|like what|for example|such as|to clarify|one more|"
    r"another|wait|hmm|really|after that|before that|with that)\b"
)
# Words about the conversation itself.
ABOUT_CONVERSATION = (
    r"\byou(?:'ve| have| had)? (?:just )?(?:said|say|mentioned|told|suggested|recommended|listed|"
    r"gave|given|wrote|written|meant|mean|described|explained|offered|promised|quoted|sent|linked|"
    r"named|proposed)\b",
    r"\byour (?:last|previous|first|second|earlier|answer|answers|reply|response|suggestion|"
    r"suggestions|example|examples|recommendation|list|explanation|message|point|summary|code|"
    r"advice)\b",
    r"\bi(?:'ve| have| had)? (?:just )?(?:said|mentioned|told|asked|meant|wrote|described|gave|"
    r"sent|explained)\b",
    r"\bwe (?:just )?(?:discussed|talked|said|covered|agreed)\b|\b(?:this|our) (?:chat|"
    r"conversation|discussion)\b",
    r"\bgiven (?:what|that|my|the above)\b|\bbased on\b|\bas (?:above|before|discussed|mentioned|"
    r"described)\b",
    r"\b(?:for|with|of|by|to|than|like|in) (?:me|us|mine|ours|him|her)\b(?! dollars?)|\b(?:should|"
    r"would) (?:i|we) (?:choose|pick|go|take|prefer|get)\b|\b(?:my|our) (?:case|situation|needs|"
    r"budget|requirements|example|setup|project)\b",
    r"\b(?:do|would|can|could) you (?:still )?(?:recommend|suggest|advise)\b|\b"
    r"recommend(?:ation)?s?\b",
    r"\b(?:summari[sz]e|repeat|rephrase|reword|elaborate|continue|go on|keep going|shorten|"
    r"simplify|translate|rewrite|clarify)\b",
    r"\b(?:in short|in detail|in more detail|step by step|in other words|simpler|the same way|as"
    r" well)\b",
    r"\b(?:does|do|did|is|are|was|were|will|would|can|could|should|has|have)(?:n't)? (?:not"
    r" )?(?:count|apply|matter|help|include|included|qualify)\b",
)
# Words of a question about what was answered before, rather than about what was asked.
ABOUT_ANSWERS = frozenset(
    (
        "they them their theirs these those one ones first second third fourth fifth former latter both "
        "either neither option options why which rest others another such mean means meant really sure"
    ).split()
)
# Words of a message about several of those before it.
ABOUT_SEVERAL = frozenset(
    (
        "all both two three several each everything together total altogether compare compared comparison "
        "difference between either neither other others another earlier before previous previously first "
        "again back still instead summarise summarize summary list conversation chat so"
    ).split()
)
# The subject of a question is another word than these: what is asked about things, and what is done to them.
ATTRIBUTES = frozenset(
    (
        "ability access actor address advantage age alternative amount answer area attribute author "
        "availability available average balance basic begin benefit birthday bonus breakfast building "
        "button calorie can capacity capital category cause charge check checkin checkout choice city class "
        "close code color colour condition content copy cost country coverage currency current cut date day "
        "deadline deal default definition delay delivery deposit depth detail details difference different "
        "dimension direction disadvantage discount distance document documentation dosage dose downside "
        "download duration duty effect eligibility eligible email employee end entry estimate example "
        "exception exchange experience expiry expire explanation extra factor fact fare feature fee file "
        "find fine flavor flavour form format frequency full function goal guarantee guest height help "
        "history holder hour hours idea impact important included info information ingredient input install "
        "instruction insurance issue item job kind label language law leader length level license licence "
        "limit line link list location long main manager manual map material maximum meaning member method "
        "mileage minimum minute mode model money month name near need new number office online open opening "
        "option options origin output package page parameter parking part payment penalty people percent "
        "percentage period permit person phone photo picture piece place plan point policy population "
        "position possible power premium price pricing problem procedure process product proof property "
        "purpose quality quantity range rate rating reason receipt recipe refund region registration "
        "regulation renewal rent replacement report requirement requirements reservation result return "
        "review reward risk role room rule safe salary sale sample savings schedule score seat section "
        "service set setting settings setup shape shipping short side sign size skill solution sort source "
        "space speed staff standard start state status step steps stock stop store street style subject "
        "support symptom syntax system tax team temperature term terms test thing time tip title tool top "
        "total track tracking traffic transfer treatment trial type unit update usage use user validity "
        "value variant version view visit volume wait warranty way weather website week weight width word "
        "work worker year rest lot bit couple kinds types big small good bad old free cheap expensive fast "
        "slow high low hard easy early late often soon far much many"
    ).split()
)
VERBS = frozenset(
    (
        "accept access achieve add adjust affect afford agree allow appear apply approve arrange arrive ask "
        "assign attach attend avoid become begin believe belong block book borrow break bring build buy "
        "calculate call cancel carry cause change charge check choose claim clean clear close collect "
        "combine come compare complete confirm connect consider consist contact contain continue convert "
        "cook copy cost count cover create cut deal decide decline define delay delete deliver depend "
        "describe design destroy develop die differ disable discover do download draw drink drive drop earn "
        "eat edit enable end enjoy enter exist expect expire explain export extend face fail fall feel file "
        "fill find finish fit fix follow forget freeze get give go grow handle happen have hear help hold "
        "import improve include increase inform insert install join keep know last lead learn leave lend "
        "let like list live load log look lose make manage matter mean measure meet miss modify move need "
        "notice notify obtain occur offer open operate order own pass pay perform place plan play postpone "
        "prepare prevent print process produce protect prove provide publish pull purchase put qualify "
        "raise reach react read receive recover reduce refuse register reject relate release remain remove "
        "renew rent repair replace reply report request require reschedule reset resolve respond restart "
        "restore result retrieve return reverse run save say schedule search see sell send separate serve "
        "set share ship show sign skip solve speak spend split start stay stop store submit suggest supply "
        "support suspend switch take talk tell test think throw track transfer travel treat trigger try "
        "turn understand undo unlock update upgrade downgrade upload use verify view visit wait walk want "
        "wash watch wear win withdraw work worry write"
    ).split()
)
# Abbreviations and numbers of no one in particular: that they were said before means nothing.
GENERIC_NAMES = frozenset(
    (
        "wi-fi wifi fi wi pdf csv faq pin sms tv usb api url html css id ceo hr it sim sso sql json xml "
        "http https ok email e-mail internet google english monday tuesday wednesday thursday friday "
        "saturday sunday sundays saturdays fridays mondays january february march april may june july "
        "august september october november december christmas easter gmt pm am atm gps led dvd cd pc mr mrs "
        "ms dr"
    ).split()
)
# How a request begins that is no instruction for what follows.
ASKING = frozenset(
    (
        "what whats who whos whom whose when where wheres which why how hows is are was were am do does did "
        "can could may might must shall should will would has have had tell explain describe show list give "
        "define name find compare help isn aren don doesn didn can't isn't aren't don't doesn't didn't "
        "couldn't what's who's where's how's when's"
    ).split()
)
# Parts of a user's message that hold for the answers after it.
INSTRUCTIONS = (
    r"\bfrom now on\b|\bfor the rest\b|\bgoing forward\b|\bin (?:all|every|each|future|your)"
    r" (?:your )?(?:answers?|repl(?:y|ies)|responses?|messages?|further)\b|\bevery (?:answer|reply"
    r"|response|time you)\b",
    r"\b(?:always|never) (?:answer|reply|respond|use|write|say|mention|give|call|add|end|start|"
    r"speak|include)\b",
    r"\b(?:answer|answers|reply|replies|respond|write|speak|talk|explain|say|translate|chat|"
    r"continue|communicate)(?: \w+){0,3} (?:in|like|as if|as though|using|with|without|briefly|"
    r"shortly|only)\b",
    r"\bbe (?:brief|concise|short|detailed|formal|informal|polite|honest|specific|more|less|"
    r"precise|quick|nice|kind|as)\b",
    r"\bkeep (?:it|your|the|answers|things|every)\b|\b(?:short|brief|concise|simple|long|detailed)"
    r" (?:answers?|replies|sentences|version)\b",
    r"\b(?:remember|assume|suppose|pretend|imagine|act as|act like|behave|call me|address me|treat"
    r" me|note that|bear in mind|keep in mind|consider that|let's say|let us say|say i|say we|"
    r"think of me|refer to|ignore|forget|stop (?:using|saying|adding)|avoid|speak|use (?:only|"
    r"metric|imperial|simple|british|american|bullet|tables?|emojis?|python|javascript|typescript|"
    r"java|markdown|celsius|fahrenheit|euros?|dollars?|formal|plain))\b",
    r"\b(?:you are|you're|you will be|you'll be|your name|your role)\b",
    r"\bin (?:german|french|spanish|italian|english|dutch|portuguese|polish|russian|chinese|"
    r"japanese|korean|arabic|hindi|turkish|swedish|danish|norwegian|finnish|greek|latin|bullet"
    r" points|one sentence|simple terms|layman|plain english|a table|json|markdown|metric|imperial"
    r"|pirate|rhymes?|python|javascript|typescript|java|rust|golang)\b",
)
# Statements of users about themselves, at the start of a clause.
FACTS = (
    r"(?:^|[,;:.!?(] ?|\b(?:and|but|since|because|as|given that|now that|if|when|so|also|hi|hello|"
    r"hey|ok|okay|well|that) )(?:i'm|i am|i was|i've|i have|i had|i'd|i'll|we're|we are|we've|we"
    r" have|we had|i|we|my|our|me|as an?|being an?|speaking as|for an?|in my|with my|at my|on my)"
    r"\b"
)
SMALL_TALK = frozenset(
    (
        "hi hello hey hiya howdy greetings good morning afternoon evening day there all everyone team "
        "thanks thank you u so very much a lot many ok okay k great perfect cool nice awesome excellent "
        "super brilliant wonderful fine alright got it understood sounds makes sense cheers bye goodbye see "
        "later how are is going doing today i im i'm am have need some help question questions quick please "
        "can could me with something just wanted to ask for your the that was really helpful appreciate "
        "welcome back again hope well anyone anybody meet pleased who what's up sup yo dear sir madam "
        "assistant bot wow amazing"
    ).split()
)
# System prompts that make what was said before matter to every answer.
HISTORY_MATTERS = (
    r"\bremember\b|\bmemor(?:y|ies|ize|ise)\b|\bkeep track\b|\bearlier\b|\bpreviously\b|\bprevious"
    r" (?:message|turn|answer|question|conversation|response|exchange)s?\b|\bprior (?:message|turn"
    r"|conversation|context)s?\b",
    r"\b(?:chat|conversation|message|dialog(?:ue)?) history\b|\bhistory of (?:the|this) (?:chat|"
    r"conversation)\b|\bhistory\b",
    r"\bthe conversation so far\b|\bso far\b|\bcontext of the conversation\b|\bthroughout (?:the|"
    r"this) conversation\b|\bfollow[- ]?up\b|\brephrase\b|\breformulate\b|\bstandalone question\b",
    r"\bpreferences?\b|\bpersonali[sz]e|\btailor\b|\badapt (?:to|your)\b|\bthe user's (?:name|"
    r"level|goal|profile|needs|mood|style)\b",
    r"\bcontinue (?:the|a|this|their|from)\b|\bstory\b|\bgame\b|\brole[- ]?play|\bcharacter\b|\b"
    r"persona\b|\bplayer\b|\badventure\b|\bnarrat|\bin character\b|\bstay in\b|\bscene\b|\bquiz\b|"
    r"\binterview\b|\btutor\b|\blesson\b|\btherap|\bcoach\b",
    r"\bdo not repeat\b|\bdon't repeat\b|\bnever repeat\b|\bavoid repeating\b|\bstep by step"
    r" through\b|\bone (?:question|step) at a time\b|\bcollect (?:the|all|their)\b|\bask (?:the"
    r" user|for|them|clarifying|follow)",
)
# Answers that refer to what was said before.
REFERS_BACK = (
    r"\b(?:as|like) (?:i|we) (?:just |have |already |previously )*(?:said|mentioned|explained|"
    r"noted|described|told|discussed|wrote|pointed out|listed|suggested|recommended)\b",
    r"\bas (?:mentioned|discussed|noted|explained|described|stated|listed|said|outlined|before|"
    r"above|you (?:said|mentioned|told|noted|asked|described|wrote))\b",
    r"\b(?:mentioned|discussed|described|listed|explained|shown|given|outlined|said|covered|talked"
    r" about) (?:above|earlier|before|previously|already)\b",
    r"\b(?:earlier|previously|above|already),? (?:i|we|you)\b|\b(?:i|we|you)(?:'ve| have)?"
    r" (?:already|previously|earlier|just) (?:said|mentioned|told|asked|discussed|explained|"
    r"covered|shared|gave|given)\b",
    r"\byou (?:said|mentioned|told|asked|wanted|noted|were asking|described|shared|stated)\b|\b"
    r"your (?:earlier|previous|last|first|other|original) (?:question|message|request|point|answer"
    r"|order)\b",
    r"\b(?:since|because|as|given that|considering) you(?:'re| are|'ve| have|r| live| use| said|"
    r" mentioned| want| need| prefer| like)\b",
    r"\b(?:my|our|the) (?:last|previous|earlier|first) (?:answer|message|response|reply|suggestion"
    r"|point|example)\b|\bin (?:my|our|this|the) (?:previous|earlier|last|conversation|chat)\b",
    r"\b(?:again|once more),|\bsame (?:as|applies|goes|way|steps|process|rules?|thing) (?:here|"
    r"before|above|as before|for)\b|\bsame as (?:before|above)\b",
    r"\b(?:unlike|compared (?:to|with)|in contrast to|instead of) (?:the|that|those|your)"
    r" (?:previous|first|other|former|one|last)\b|\bthe (?:former|latter|above|aforementioned)\b|"
    r"\bto (?:go back|return) to\b|\bto continue\b",
)
